"""A scorecard: requirements, what was measured for each, the bar, and whether it is passed; as tables and plain values.

A `Measure` is one number beside the baseline's and its bar; a `Finding` gathers those of a requirement, which is passed
if all of them are. What was not measured is never passed: it leaves the verdict open, unless another measure fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from app.output.numbers import number
from callbacks.atomic import finite

MARKS = {True: "[green]pass[/]", False: "[red]fail[/]", None: "[yellow]not measured[/]"}
WORDS = {True: "pass", False: "**fail**", None: "not measured"}


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: What it is of.
        value: None if it was not measured, or is not finite.
        bar: What is asked of it, in words; empty for what is only told.
        passed: Whether the bar is passed; None if it was not measured, or there is no bar.
        baseline: The one-layer Transformer's value.
        spread: Standard deviation over the seeds.
        note: What else there is to say.
    """

    name: str
    value: float | None
    bar: str = ""
    passed: bool | None = None
    baseline: float | None = None
    spread: float | None = None
    note: str = ""

    @classmethod
    def at_most(cls, name: str, value: float | None, bar: float, **more: Any) -> Measure:
        """Passed if the value is not above the bar."""
        return cls(name, finite(value), f"<= {number(bar)}", None if value is None else bool(value <= bar), **more)

    @classmethod
    def below(cls, name: str, value: float | None, bar: float, **more: Any) -> Measure:
        """Passed if the value is below the bar."""
        return cls(name, finite(value), f"< {number(bar)}", None if value is None else bool(value < bar), **more)

    @classmethod
    def at_least(cls, name: str, value: float | None, bar: float, **more: Any) -> Measure:
        """Passed if the value is not below the bar."""
        return cls(name, finite(value), f">= {number(bar)}", None if value is None else bool(value >= bar), **more)

    @property
    def is_judged(self) -> bool:
        """Whether anything is asked of it."""
        return bool(self.bar)


@dataclass(frozen=True)
class Finding:
    """A requirement, its measures, and in few words what they come to."""

    requirement: str
    headline: str
    measures: tuple[Measure, ...]

    @property
    def passed(self) -> bool | None:
        """Whether all bars are passed; None where none fails, but one was not measured."""
        verdicts = [measure.passed for measure in self.measures if measure.is_judged]
        if False in verdicts:
            return False
        return None if None in verdicts or not verdicts else True


@dataclass(frozen=True)
class Scorecard:
    """All findings on one model; `about` says of which configuration, how and where they were measured."""

    model: str
    findings: tuple[Finding, ...]
    relatives: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """Whether each requirement is passed."""
        return {finding.requirement: finding.passed for finding in self.findings}

    def plain(self) -> dict[str, Any]:
        """The scorecard as it stands in the JSON file."""
        return {"model": self.model, "passed": self.verdicts} | asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Scorecard:
        """The scorecard that `plain` was made of."""
        findings = tuple(
            Finding(
                finding["requirement"],
                finding["headline"],
                tuple(Measure(**measure) for measure in finding["measures"]),
            )
            for finding in plain["findings"]
        )
        return cls(plain["model"], findings, plain["relatives"], plain["about"])

    def scalars(self) -> Iterator[tuple[str, float]]:
        """A tag and a value for each number, and for each verdict 1, 0 or nothing."""
        for finding in self.findings:
            group = f"scorecard/{tag(finding.requirement)}"
            if finding.passed is not None:
                yield f"{group}/passed", float(finding.passed)
            for measure in finding.measures:
                if measure.value is not None:
                    yield f"{group}/{tag(measure.name)}", measure.value


def tag(name: str) -> str:
    """A name as TensorBoard likes them: words joined by underscores."""
    return "_".join("".join(c if c.isalnum() or c in ".-" else " " for c in name).split())


def value_cell(measure: Measure) -> str:
    """The value, and its spread over the seeds."""
    spread = "" if measure.spread is None else f" ± {number(measure.spread)}"
    return number(measure.value) + spread


def card_table(card: Scorecard) -> Table:
    """A heading for each requirement and a line for each of its measures, in 100 columns."""
    table = Table(f"[bold]{card.model}[/]", box=box.SIMPLE_HEAD)
    for column in ("measured", "Transformer", "bar", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for place, finding in enumerate(card.findings, 1):
        table.add_row(f"[bold]{place}. {finding.requirement}[/]", "", "", "", MARKS[finding.passed])
        for measure in finding.measures:
            mark = MARKS[measure.passed] if measure.is_judged else ""
            name = f"  {measure.name}" + (f"\n    [dim]{measure.note}[/]" if measure.note else "")
            baseline = "" if measure.baseline is None else number(measure.baseline)
            table.add_row(name, value_cell(measure), baseline, measure.bar, f"[dim]{mark}[/]")
    return table


def renderables(card: Scorecard) -> Iterator[RenderableType]:
    """The table, and what a person has to judge."""
    yield card_table(card)
    none = f"The documentation of {card.model} names no nearest relatives; a person judges novelty."
    yield Text(card.relatives or none)  # not markup, whatever brackets it has


def summary_table(cards: Sequence[Scorecard]) -> Table:
    """Requirements by models: verdicts and headlines, in 100 columns."""
    table = Table("requirement", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for card in cards:
        table.add_column(card.model, justify="right")
    for findings in zip(*(card.findings for card in cards), strict=True):
        cells = (f"{MARKS[finding.passed]}\n[dim]{finding.headline}[/]" for finding in findings)
        table.add_row(findings[0].requirement, *cells)
    return table


def summary_markdown(cards: Sequence[Scorecard]) -> str:
    """The same as a table in Markdown."""
    heading = " | ".join(["| requirement", *(card.model for card in cards)]) + " |"
    lines = [heading, "|---" * (len(cards) + 1) + "|"]
    for findings in zip(*(card.findings for card in cards), strict=True):
        cells = (f"{WORDS[finding.passed]}, {finding.headline}" for finding in findings)
        lines.append(f"| {findings[0].requirement} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def card_markdown(card: Scorecard) -> str:
    """The scorecard as a table in Markdown."""
    lines = [f"| {card.model} | measured | Transformer | bar | |", "|---|---|---|---|---|"]
    for place, finding in enumerate(card.findings, 1):
        lines.append(f"| **{place}. {finding.requirement}** | | | | {WORDS[finding.passed]} |")
        for measure in finding.measures:
            name = measure.name + (f" ({measure.note})" if measure.note else "")
            baseline = "" if measure.baseline is None else number(measure.baseline)
            word = WORDS[measure.passed] if measure.is_judged else ""
            lines.append(f"| {name} | {value_cell(measure)} | {baseline} | {measure.bar} | {word} |")
    return "\n".join([*lines, "", card.relatives]).rstrip() + "\n"
