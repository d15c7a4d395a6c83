"""What is under way: a line at once, one for each step that is done, and in a terminal a bar with the time left.

All of it is left out while rich's own console is quiet, which `--quiet` makes it (`app.cli.invocation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TextIO

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str], object]
COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("time left"), TimeRemainingColumn())


def announce(text: str, file: TextIO | None = None) -> None:
    """Say what is begun, before what takes seconds to load is loaded, or how it went: on standard output, or there."""
    if not get_console().quiet:
        print(text, file=file, flush=True)


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def steps(total: int, console: Console, *, measuring: bool = False) -> Iterator[Tell]:
    """A function to call with a line about each step, when it is done.

    Args:
        total: Number of steps.
        console: Where to print.
        measuring: Whether the steps are measurements of time: their lines come before them, and the bar's clock stands
            still meanwhile, as the thread in which it ticks would be measured, too.
    """
    console = Console(quiet=True) if get_console().quiet else console
    shown = console.is_terminal and total > 0
    with Progress(*COLUMNS, console=console, auto_refresh=not measuring, transient=True, disable=not shown) as bar:
        task, numbers = bar.add_task("", total=total), count(1)

        def tell(line: str) -> None:
            number = next(numbers)
            say(console, f"{number}/{total} {line}")
            bar.update(task, completed=number - measuring, refresh=True)

        bar.refresh()
        yield tell
