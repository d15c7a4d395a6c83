"""How fast models learn, read off their validations: what it takes to be right nine times in ten, and who is how far.

Between two validations a curve is straight; before the first it is not known. Costs are tokens, FLOPs and seconds of
training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.compare.findings import Row
from app.study.study import Record, Study

COSTS = ("tokens", "flops", "seconds")
LEVEL = 0.9  # of accuracy
FAR = 5  # so many times the slowest learner's cost must a run have had before that it did not learn says something
Curve = list[tuple[float, float]]


def curve(record: Record, cost: str, metric: str) -> Curve:
    """Validations as (cost, value)."""
    return [(point[cost], point[metric]) for point in record["history"] if point.get(metric) is not None]


def value_at(points: Curve, place: float) -> float | None:
    """The value at a cost; None outside of the curve."""
    if points and place == points[-1][0]:
        return points[-1][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= place <= x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return None


def cost_to(points: Curve, level: float = LEVEL) -> float | None:
    """The cost at which a rising curve first has this value: of its first point at most; None if it never has."""
    if points and points[0][1] >= level:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < level <= y1:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


@dataclass(frozen=True)
class Reach:
    """What it took the seeds of a row to be right nine times in ten.

    Attributes:
        costs: What it cost each seed; None where it did not come about.
        ends: The whole cost of each seed's run.
    """

    costs: list[float | None]
    ends: list[float]

    @property
    def median(self) -> float | None:
        """Over the seeds, those that did not get there being the last; None if it is one of them."""
        costs = sorted(float("inf") if cost is None else cost for cost in self.costs)
        middle = statistics.median_high(costs) if costs else float("inf")
        return None if middle == float("inf") else middle

    @property
    def known(self) -> list[float]:
        """The costs of those that got there."""
        return [cost for cost in self.costs if cost is not None]

    @property
    def censored(self) -> float:
        """The least cost at which a seed was not there."""
        return min(end for cost, end in zip(self.costs, self.ends, strict=True) if cost is None)


def reach(study: Study, row: Row, cost: str) -> Reach:
    """What it took the seeds of a row."""
    curves = [points for name in row.runs if (points := curve(study.records[name], cost, "val/accuracy"))]
    return Reach([cost_to(points) for points in curves], [points[-1][0] for points in curves])


def slowest(reaches: Sequence[Reach]) -> float | None:
    """The greatest cost of all that got there."""
    return max((cost for each in reaches for cost in each.known), default=None)


@dataclass(frozen=True)
class Equal:
    """The rows of a setting at one cost: the greatest that all their runs had.

    Attributes:
        cost: Name of the cost.
        place: The cost itself; None if no row has a curve.
        values: For each row the validation of each seed there.
    """

    cost: str
    place: float | None
    values: list[list[float]]


def at_equal(study: Study, rows: Sequence[Row], cost: str) -> Equal:
    """The validations of all rows at the greatest cost that all had."""
    curves = [[curve(study.records[name], cost, f"val/{row.quality}") for name in row.runs] for row in rows]
    place = min((points[-1][0] for of_row in curves for points in of_row if points), default=None)
    if place is None:
        return Equal(cost, None, [[] for _ in rows])
    found: list[list[Any]] = [[value_at(points, place) for points in of_row] for of_row in curves]
    return Equal(cost, place, [[value for value in of_row if value is not None] for of_row in found])
