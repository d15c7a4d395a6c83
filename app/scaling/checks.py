"""Predictions beside what was measured: runs that no law was fitted to, first of all one at the predicted optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.output.numbers import short
from app.scaling.forecasts import Forecast, Frontier
from app.scaling.law import SAME, Fit
from app.scaling.origin import ENOUGH_RATES, is_number, stranger, varying
from app.scaling.points import Point

TRIED = (0.5, 1, 2, 4, 8)  # learning rates of the run at the optimum, as multiples of the experiment file's
assert len(TRIED) == ENOUGH_RATES


@dataclass(frozen=True)
class Check:
    """A size that was trained and not fitted.

    Attributes:
        forecast: What L(N, D) predicts, beside the mean of its runs.
        remark: Whether it is at the optimum of its budget, and why the law may say nothing of it.
    """

    forecast: Forecast
    remark: str

    def plain(self) -> dict[str, Any]:
        """As it stands in a JSON file."""
        return self.forecast.plain() | {"remark": self.remark}


def checks_of(points: Sequence[Point], runs: Sequence[Point], fitted: Fit, edge: Frontier | str) -> list[Check]:
    """Predictions for runs that were not fitted, those of one size, length and kind of model together.

    Args:
        points: What the law was fitted to.
        runs: What it was not.
        fitted: L(N, D).
        edge: The compute-optimal sizes, or the reason why there are none.
    """
    groups: dict[tuple[int, int, str], list[Point]] = {}
    for run in runs:
        groups.setdefault((run.parameters, run.steps, stranger(points, run.options)), []).append(run)
    checks = []
    for (N, _, odd), some in groups.items():
        D = float(np.mean([run.tokens for run in some]))
        observed = float(np.mean([run.loss for run in some]))
        forecast = Forecast({"N": N, "D": D}, fitted.predict(N, D, runs=len(some)), observed, len(some))
        remarks = [f"another kind of model: its {odd} differ" if odd else "", *where(N, D, some[0].flops, edge)]
        checks.append(Check(forecast, "; ".join(filter(None, remarks))))
    return checks


def where(N: float, D: float, flops: float, edge: Frontier | str) -> list[str]:
    """What is to be said of sizes: that they are the optimum of their budget, or that none like them was measured."""
    if isinstance(edge, str):
        return []
    beyond, optimum = edge.measured.beyond(N, D), edge.optimum(flops)
    if beyond:
        return [beyond]
    ratios = (N / optimum.parameters.value, D / optimum.tokens)
    near = all(1 / SAME <= ratio <= SAME for ratio in ratios)
    return ["at the optimum of its budget"] if near and not optimum.beyond else []


def proposal(points: Sequence[Point], edge: Frontier | str) -> str:
    """How to train one run at the predicted optimum, in the middle of the budgets that have one; empty without any.

    The width comes from those of the points, between which log N is straight in log width.
    """
    if isinstance(edge, str) or edge.middle is None:
        return ""
    optimum = edge.optimum(edge.middle)
    N, D = optimum.parameters.value, optimum.tokens
    words = f"N = {short(N)}, D = {short(D)}"
    leaders = list(varying(points))
    if len(leaders) != 1 or not all(is_number(point.options[leaders[0]]) for point in points):
        return words
    name = leaders[0]
    value = option_at(points, name, N)
    if name != "d_model" or not points[0].task:
        return f"{words}: --model.{name} {value}"
    point = points[0]
    depth = f'--num_layers "[{point.num_layers}]" ' if point.num_layers else ""
    return (
        f'python -m app compare --models "[{point.model}]" --tasks "[{point.task}]" --d_models "[{value}]" '
        f'{depth}--tokens {D:.3g} --learning_rates "[{",".join(f"{rate:g}" for rate in TRIED)}]" --out runs/optimum'
    )


def option_at(points: Sequence[Point], name: str, N: float) -> int:
    """An option that sets the size, at which there are about N parameters: a multiple of 4 that heads divide."""
    sizes = sorted({(point.parameters, point.options[name]) for point in points})
    logs = np.log(np.array(sizes, float))
    value = math.exp(np.interp(math.log(N), logs[:, 0], logs[:, 1]))
    known = points[0].options
    heads_per_unit = known.get("num_heads", 1) / known[name] if name == "d_model" else 0
    possible = [n for n in range(4, int(2 * value) + 5, 4) if n % (2 * max(1, round(n * heads_per_unit))) == 0]
    return min(possible, key=lambda n: abs(n - value))
