"""Tables, for the terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

NARROW, WIDE = 100, 160  # columns of what is printed where no terminal says how wide it is


def new_console(width: int = NARROW) -> Console:
    """A console as wide as the terminal, or as `width` where there is none."""
    return Console(width=None if sys.stdout.isatty() else width)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [titles, [":--", *["--:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def new_table(titles: Sequence[str], title: str | None = None) -> Table:
    """An empty table for the terminal, its first column to the left and the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for place, name in enumerate(titles):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place > 0)
    return table


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a CSV file has them, the titles first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
