"""What fitted laws are for: a larger size's loss before it is trained, and how to spend a budget of compute.

A law is put to the test by leaving out the largest size, whose loss it then predicts. With `C = c N D`, the sizes of
least loss under `L(N, D) = E + A N^-alpha + B D^-beta` are `N = G (C/c)^a` and `D = (C/c)^b / G`, where
`a = beta / (alpha + beta)`, `b = 1 - a` and `G = (alpha A / (beta B))^(1 / (alpha + beta))` (arXiv 2203.15556, eq. 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from app.output.intervals import Interval
from app.scaling.law import UNDETERMINED, Array, Fit, fit, size_classes


@dataclass(frozen=True)
class Forecast:
    """A loss that a law predicts.

    Attributes:
        sizes: By name of variable.
        loss: The mean of `runs` runs, or of one if there are none: with an interval as wide as their noise makes it.
        observed: The mean loss of the runs of these sizes, which the law was not fitted to; None if there are none.
        runs: Their number.
    """

    sizes: dict[str, float]
    loss: Interval
    observed: float | None = None
    runs: int = 0

    @property
    def inside(self) -> bool | None:
        """Whether the interval has the observed loss."""
        return None if self.observed is None else self.loss.low <= self.observed <= self.loss.high

    @property
    def missed_by(self) -> float | None:
        """Observed minus predicted."""
        return None if self.observed is None else self.observed - self.loss.value

    def plain(self) -> dict[str, Any]:
        """As it stands in a JSON file; a forecast without an observation says that it is only predicted."""
        judged = {"inside": self.inside, "missed_by": self.missed_by, "only_predicted": self.observed is None}
        return asdict(self) | judged


def left_out(sizes: Mapping[str, ArrayLike], losses: ArrayLike, **options: Any) -> Forecast:
    """Fit without the largest size of the first variable, then predict it, at the largest of the other variable.

    Args:
        sizes: As `fit` takes them.
        losses: As `fit` takes them.
        options: `level`, `resamples` and `seed` of `fit`.

    Raises:
        ValueError: What is left is too little.
    """
    arrays, y = {name: np.asarray(values, float) for name, values in sizes.items()}, np.asarray(losses, float)
    place = size_classes(next(iter(arrays.values())))
    held = place == place.max()
    kept = fit({name: values[~held] for name, values in arrays.items()}, y[~held], **options)
    if kept.undetermined:
        raise ValueError(
            f"without the largest {kept.law.variables[0]}, {' and '.join(kept.undetermined)} {UNDETERMINED}"
        )
    for values in list(arrays.values())[1:]:
        held &= size_classes(values) == size_classes(values)[held].max()
    at = {name: float(values[held].mean()) for name, values in arrays.items()}
    runs = int(held.sum())
    return Forecast(at, kept.predict(*at.values(), runs=runs), float(y[held].mean()), runs)


def next_size(fitted: Fit, sizes: Mapping[str, ArrayLike]) -> Forecast:
    """The loss of a run twice as large in the first variable, at the largest of the other."""
    if fitted.undetermined:
        raise ValueError(f"{' and '.join(fitted.undetermined)} {UNDETERMINED}")
    at = {name: float(np.max(values)) for name, values in sizes.items()}
    at[fitted.law.variables[0]] *= 2
    return Forecast(at, fitted.predict(*at.values()))


@dataclass(frozen=True)
class Frontier:
    """Sizes of least loss, by budget.

    Attributes:
        fitted: L(N, D) with its bootstrap.
        flops: c, FLOPs a parameter and token: the median of the runs.
        extremes: The least and the greatest c of the runs; far apart, the budget is no product of sizes.
        a: Exponent of N in C.
        b: Exponent of D in C.
    """

    fitted: Fit
    flops: float
    extremes: tuple[float, float]
    a: Interval
    b: Interval

    def sizes(self, budgets: ArrayLike) -> tuple[Array, Array]:
        """N and D of least loss at budgets in FLOPs."""
        law = self.fitted.law
        scales, a = optimum(np.array([law.coefficients]), np.array([law.exponents]))
        product = np.asarray(budgets, float) / self.flops
        N = scales[0] * product ** a[0]
        return N, product / N

    def band(self, budgets: ArrayLike) -> tuple[Array, Array]:
        """Between which sizes the N of least loss lies, at budgets in FLOPs."""
        scales_R, a_R = optimum(self.fitted.coefficients_RK, self.fitted.exponents_RK)
        products_S = np.asarray(budgets, float) / self.flops
        return self.fitted.ends(scales_R[:, None] * products_S ** a_R[:, None])

    def plain(self, budgets: Array) -> dict[str, Any]:
        """As it stands in a JSON file, with the sizes at budgets."""
        low, high = self.band(budgets)
        rows = zip(budgets, *self.sizes(budgets), low, high, strict=True)
        names = ("flops", "parameters", "tokens", "parameters_low", "parameters_high")
        points = [dict(zip(names, map(float, row), strict=True)) for row in rows]
        c = {"flops_per_parameter_and_token": self.flops, "least": self.extremes[0], "greatest": self.extremes[1]}
        return c | {"a": asdict(self.a), "b": asdict(self.b), "optimal": points}


def optimum(coefficients_RK: Array, exponents_RK: Array) -> tuple[Array, Array]:
    """G and a of `N = G (C/c)^a`, (R,) each; where a law has no such optimum, G is 0 or infinite."""
    (A, B), (alpha, beta) = coefficients_RK.T, exponents_RK.T
    with np.errstate(divide="ignore"):
        return np.exp((np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)), beta / (alpha + beta)


def frontier(fitted: Fit, N: ArrayLike, D: ArrayLike, flops: ArrayLike) -> Frontier:
    """The compute-optimal sizes by L(N, D); ValueError if it leaves an exponent undetermined.

    Args:
        fitted: L(N, D).
        N: Parameters of the runs.
        D: Their tokens.
        flops: Their FLOPs.
    """
    if fitted.undetermined:
        raise ValueError(f"no frontier: {' and '.join(fitted.undetermined)} {UNDETERMINED}")
    ratios = np.asarray(flops, float) / (np.asarray(N, float) * np.asarray(D, float))
    if not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError("no frontier: runs without FLOPs")
    (alpha, beta), refits_RK = fitted.law.exponents, fitted.exponents_RK
    total, total_R = alpha + beta, refits_RK.sum(-1)
    a, b = (fitted.around(x / total, refits_RK[:, k] / total_R) for x, k in ((beta, 1), (alpha, 0)))
    return Frontier(fitted, float(np.median(ratios)), (float(ratios.min()), float(ratios.max())), a, b)
