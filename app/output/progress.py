"""What is under way: a line at once, one for each step that is done, and in a terminal a bar with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str], object]
COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("time left"), TimeRemainingColumn())


def announce(text: str) -> None:
    """Say what is begun, before what takes seconds to load is loaded."""
    print(text, flush=True)


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def steps(total: int, console: Console, *, ticking: bool = True) -> Iterator[Tell]:
    """A function to call with a line about each step that is done.

    Args:
        total: Number of steps.
        console: Where to print.
        ticking: Whether the bar's clock goes on between steps, in a thread of its own, which what is timed would feel.
    """
    shown = console.is_terminal and total > 0
    with Progress(*COLUMNS, console=console, auto_refresh=ticking, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=total)

        def tell(line: str) -> None:
            bar.update(task, advance=1)
            say(console, f"{bar.tasks[task].completed:g}/{total} {line}")
            bar.refresh()

        bar.refresh()
        yield tell
