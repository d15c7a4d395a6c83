"""What benchmarks find, and how it looks: as tables of 80 columns at most, and as plain values for a JSON file.

A `Result` is one ratio of two times; a `Curve` follows one model over sequence lengths, relative to a baseline. A
target that is missed is shown as such, and is no error.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from app.benchmark.timing import Ratio, fitted_exponent
from app.output.numbers import three_digits
from app.output.tables import new_table

FIT_FROM = 1024  # below, what a step costs whatever its length bends the power law
MARKS = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def extremes(ratios: Sequence[float]) -> dict[str, Any]:
    """Median and extremes of the ratios of several rounds."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "pairs": len(ratios)}


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome."""

    name: str
    compares: str
    ratio: Ratio
    target: float

    @property
    def met(self) -> bool:
        """Whether the median is at most the target."""
        return self.ratio.median <= self.target

    def plain(self) -> dict[str, Any]:
        """The result as it stands in the JSON file."""
        plain = {"name": self.name, "compares": self.compares, **asdict(self.ratio)}
        return plain | {"target": self.target, "met": self.met}


@dataclass(frozen=True)
class Quantity:
    """What a curve shows.

    Args:
        name: Name in the JSON file.
        title: Heading of the table.
        unit: Unit of the baseline's values in the table.
        grows: What the exponent is of, in words.
        scale: Such units in one second or byte.
        power: 1 to fit the exponent to the cost of a sequence, 0 to that of a token.
    """

    name: str
    title: str
    unit: str
    grows: str
    scale: float
    power: int

    def exponent(self, seq_lens: Sequence[int], per_token: Sequence[float]) -> float | None:
        """The fitted x of `cost ~ T^x` over the lengths from FIT_FROM; None if there are fewer than two."""
        points = [(T, T**self.power * value) for T, value in zip(seq_lens, per_token, strict=True) if T >= FIT_FROM]
        return fitted_exponent(*zip(*points, strict=True)) if len(points) > 1 else None


@dataclass(frozen=True)
class Curve:
    """One model's seconds or bytes a token at several lengths, and in the same rounds those of the baseline.

    `values` and `baseline_values` have all rounds' values for each of `seq_lens`. The target is for the exponent.
    """

    quantity: Quantity
    model: str
    baseline: str
    seq_lens: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    baseline_values: tuple[tuple[float, ...], ...]
    target: float | None = None

    @property
    def ratios(self) -> list[list[float]]:
        """This model's value over the baseline's, round by round, at each length."""
        pairs = zip(self.values, self.baseline_values, strict=True)
        return [[ours / theirs for ours, theirs in zip(*pair, strict=True)] for pair in pairs]

    @property
    def exponent(self) -> float | None:
        """The fitted exponent of the least values: lengths are measured at different times, unlike a ratio's two."""
        return self.quantity.exponent(self.seq_lens, [min(values) for values in self.values])

    @property
    def met(self) -> bool | None:
        """Whether the exponent is at most the target; None if either is missing."""
        exponent = self.exponent
        return None if exponent is None or self.target is None else exponent <= self.target

    def plain(self) -> dict[str, Any]:
        """The curve as it stands in the JSON file: seconds or bytes a token, and their ratios to the baseline's."""
        points = [
            {"seq_len": T, "value": statistics.median(values), "least_value": min(values)} | extremes(ratios)
            for T, values, ratios in zip(self.seq_lens, self.values, self.ratios, strict=True)
        ]
        names = {"name": self.quantity.name, "model": self.model, "baseline": self.baseline}
        return names | {"points": points, "exponent": self.exponent, "target": self.target, "met": self.met}


def ratio_table(results: Sequence[Result]) -> Table:
    """Two lines a benchmark."""
    table = new_table(("A / B", "ms", "ratio\nmin .. max", "target", ""))
    for result in results:
        ratio = result.ratio
        table.add_row(
            f"[bold]{result.name}[/]\n{result.compares}",
            f"{1e3 * ratio.seconds_a:.2f}\n{1e3 * ratio.seconds_b:.2f}",
            f"[bold]{ratio.median:.3f}[/]\n{ratio.min:.3f} .. {ratio.max:.3f}",
            f"<= {result.target:g}",
            MARKS[result.met],
        )
    return table


def curve_row(curve: Curve) -> list[str]:
    """The model, its values if it is the baseline and else its ratios to that, the exponent and its target."""
    if curve.model == curve.baseline:
        cells = [three_digits(curve.quantity.scale * statistics.median(values)) for values in curve.values]
    else:
        cells = [f"[bold]{three_digits(statistics.median(ratios))}[/]" for ratios in curve.ratios]
    exponent = "" if curve.exponent is None else f"{curve.exponent:.2f}"
    target = "" if curve.target is None else f"<= {curve.target:.2f}"
    return [curve.model, *cells, exponent, target, MARKS[curve.met]]


def renderables(measured: Sequence[Result | Curve]) -> Iterator[RenderableType]:
    """One table of all ratios, then for each quantity a heading and a table, a line a model."""
    if results := [result for result in measured if isinstance(result, Result)]:
        yield ratio_table(results)
    curves = [curve for curve in measured if isinstance(curve, Curve)]
    for quantity, group in groupby(curves, key=lambda curve: curve.quantity):
        same = list(group)
        table = new_table(["T =", *(f"{T:,}" for T in same[0].seq_lens), "x", "target", ""])
        for curve in same:
            table.add_row(*curve_row(curve))
        yield f"[bold]{quantity.title}[/]"
        yield f"{same[0].baseline} in {quantity.unit}, others relative to it; {quantity.grows} ~ T^x"
        yield table
