"""How many FLOPs a loss is worth: a curve of training from scratch, and what part of its FLOPs a grown run saves.

Runs from scratch at several budgets, each with a schedule of its own, give the loss as a function of the FLOPs; between
them log FLOPs are interpolated, beyond them nothing is: a loss outside their range gives a bound.

    compute saved = 1 - F(grown) / F(from scratch, at the same loss);    negative: lost

Only differences of losses go in. The interval is that of the difference at equal FLOPs, read off the same curve: it is
as honest about seeds as that one, holds 0 just where that one does, and takes the curve for known.

Shapes: F budgets of the runs from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.output.intervals import Interval

Array = NDArray[np.float64]
ROUNDING = 1e-9  # a value this close to an end of the curve is that end


@dataclass(frozen=True)
class Saved:
    """Part of the compute that growing saved; negative where it lost.

    Attributes:
        interval: Read off the curve from scratch, as the value is.
        least: What the curve can show at least; a value there is a bound, "at most".
        most: What it can show at most; a value there is a bound, "at least".
    """

    interval: Interval
    least: float
    most: float

    def bound(self, value: float) -> str:
        """`<=` or `>=` where a value stands at an end of the curve from scratch, so that it is a bound; else empty."""
        return "<=" if value <= self.least + ROUNDING else ">=" if value >= self.most - ROUNDING else ""


def falling(losses_F: Array) -> Array:
    """The nearest sequence, by least squares, that never rises (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for loss in losses_F:
        mean, count = float(loss), 1
        while pools and pools[-1][0] < mean:
            before, number = pools.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        pools.append((mean, count))
    return np.array([mean for mean, count in pools for _ in range(count)])


def flops_for(loss: float, flops_F: Array, losses_F: Array) -> float:
    """FLOPs at which the curve has this loss, on lines in log FLOPs; an end of the curve for a loss beyond it."""
    return float(np.exp(np.interp(-loss, -falling(losses_F), np.log(flops_F))))


def compute_saved(flops: float, difference: Interval, flops_F: Sequence[float], losses_F: Sequence[float]) -> Saved:
    """Compute saved by runs of so many FLOPs.

    Args:
        flops: That count.
        difference: Of their loss from that of training from scratch at equal FLOPs.
        flops_F: Budgets from scratch, ascending.
        losses_F: Their losses, as differences from that same run's, which is among them with 0.
    """
    curve = np.array(flops_F), np.array(losses_F)

    def of(loss: float | None) -> float | None:
        return None if loss is None else 1 - flops / flops_for(loss, *curve)

    value = of(difference.value)
    assert value is not None
    interval = Interval(value, of(difference.high), of(difference.low))
    return Saved(interval, 1 - flops / flops_F[0], 1 - flops / flops_F[-1])
