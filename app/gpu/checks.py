"""What one check found, and all of them as a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.output.tables import markdown_table

VERDICTS = {True: "passed", False: "FAILED", None: ""}
TITLES = ("part", "what", "found", "wanted", "")


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        part: What it belongs to, one of `app.gpu.command.Part`.
        what: What was tried, in words.
        found: What came out.
        wanted: What should come out; empty where a number is only to be known.
        passed: Whether it did; None where nothing was wanted, or nothing was tried.
    """

    part: str
    what: str
    found: str
    wanted: str = ""
    passed: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        return (self.part, self.what, self.found, self.wanted, VERDICTS[self.passed])


def at_most(part: str, what: str, value: float, bar: float) -> Check:
    """A check that a number is no greater than `bar`; NaN is."""
    return Check(part, what, f"{value:.1e}", f"<= {bar:g}", value <= bar)


def summary(checks: Sequence[Check]) -> str:
    """How many passed, and how many did not."""
    passed, failed = (sum(check.passed is verdict for check in checks) for verdict in (True, False))
    return f"{passed} checks passed, {failed} failed."


def page(name: str, command: str, machine: Mapping[str, Any], checks: Sequence[Check]) -> str:
    """The Markdown of one device: where it was tried, and a row for each check."""
    rows: Iterable[tuple[str, ...]] = (tuple(cell.replace("|", "\\|") for cell in check.cells) for check in checks)
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    return f"# {name}\n\n`{command}`: {about}. {summary(checks)}\n\n{markdown_table(TITLES, rows)}\n"


def file_name(kind: str, name: str) -> str:
    """A name for the page of a device: gpu-nvidia-h200.md."""
    return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
