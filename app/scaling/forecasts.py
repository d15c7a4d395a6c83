"""What fitted laws are for: a larger size's loss before it is trained, and how to spend a budget of compute.

A law is put to the test by leaving out the largest size, whose loss it then predicts. With `C = c N D`, the sizes of
least loss under `L(N, D) = E + A N^-alpha + B D^-beta` are `N = G (C/c)^a` and `D = (C/c)^b / G`, where
`a = beta / (alpha + beta)`, `b = 1 - a` and `G = (alpha A / (beta B))^(1 / (alpha + beta))` (arXiv 2203.15556, eq. 4).

An optimum is told only where it was measured around: between the smallest and the largest model, between the shortest
and the longest run, and within four epochs, up to which repeated data are worth about as much as new (arXiv
2305.16264). Its interval covers the optimum that the same runs give without those of the smallest D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from app.output.intervals import Interval
from app.output.numbers import short
from app.scaling.law import UNDETERMINED, Array, Fit, fit, size_classes

MOST_EPOCHS = 4


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
class Measured:
    """What the runs of a law measured, outside of which it says nothing of an optimum.

    Attributes:
        smallest: Parameters of the smallest model.
        largest: Those of the largest.
        shortest: Tokens of the shortest run.
        longest: Those of the longest.
        epoch: Tokens in one pass over the data; None where they never repeat.
    """

    smallest: float
    largest: float
    shortest: float
    longest: float
    epoch: float | None = None

    @property
    def most_tokens(self) -> float:
        """Tokens of the longest run, or of four epochs, if they are fewer."""
        return min(self.longest, MOST_EPOCHS * (self.epoch or math.inf))

    def beyond(self, parameters: float, tokens: float) -> str:
        """Where sizes lie outside, in words; empty where they lie inside."""
        reasons = []
        if parameters < self.smallest:
            reasons.append(f"below the smallest model, {short(self.smallest)} parameters")
        if parameters > self.largest:
            reasons.append(f"above the largest model, {short(self.largest)} parameters")
        if tokens < self.shortest:
            reasons.append(f"below the shortest run, {short(self.shortest)} tokens")
        if tokens > self.longest:
            reasons.append(f"beyond the longest run, {short(self.longest)} tokens")
        if self.epoch and tokens > MOST_EPOCHS * self.epoch:
            reasons.append(f"beyond {MOST_EPOCHS} epochs, {short(MOST_EPOCHS * self.epoch)} tokens")
        return ", ".join(reasons)


@dataclass(frozen=True)
class Optimum:
    """The sizes of least loss at one budget.

    Attributes:
        flops: The budget C.
        parameters: N, with an interval that covers the one without the smallest D.
        tokens: D.
        beyond: Why it is not determined, in words; empty if it is.
        without_smallest: The same where the runs of the smallest D are left out; None where that is not known.
    """

    flops: float
    parameters: Interval
    tokens: float
    beyond: str
    without_smallest: Optimum | None = None

    def plain(self) -> dict[str, Any]:
        """As it stands in a JSON file: what is not determined has a reason in the place of its sizes."""
        sizes = {"parameters": asdict(self.parameters), "tokens": self.tokens}
        told = {"flops": self.flops} | ({"not_determined": self.beyond} if self.beyond else sizes)
        return told | ({"without_smallest_D": self.without_smallest.plain()} if self.without_smallest else {})


@dataclass(frozen=True)
class Frontier:
    """Sizes of least loss, by budget.

    Attributes:
        fitted: L(N, D) with its bootstrap.
        refitted: The same without the runs of the smallest D, or the reason why there is none.
        measured: The sizes of the runs.
        flops: c, FLOPs a parameter and token: the median of the runs.
        extremes: The least and the greatest c of the runs; far apart, the budget is no product of sizes.
        a: Exponent of N in C.
        b: Exponent of D in C.
    """

    fitted: Fit
    refitted: Fit | str
    measured: Measured
    flops: float
    extremes: tuple[float, float]
    a: Interval
    b: Interval

    def sizes(self, budgets: ArrayLike) -> tuple[Array, Array]:
        """N and D of least loss at budgets in FLOPs, wherever they lie."""
        product = np.asarray(budgets, float) / self.flops
        N = best_parameters(self.fitted, product)
        return N, product / N

    def band(self, budgets: ArrayLike) -> tuple[Array, Array]:
        """Between which N the optimum lies at budgets in FLOPs, the smallest D left out or not."""
        product = np.asarray(budgets, float) / self.flops
        fits = [fitted for fitted in (self.fitted, self.refitted) if isinstance(fitted, Fit)]
        ends = np.array([[best_parameters(fitted, product), *ends_of_best(fitted, product)] for fitted in fits])
        return ends.min((0, 1)), ends.max((0, 1))

    def optimum(self, budget: float) -> Optimum:
        """The optimum at a budget in FLOPs, and how it moves when the smallest D is left out."""
        (N, D), (low, high) = self.sizes(budget), self.band(budget)

        def told(N: float, D: float, moved: Optimum | None = None) -> Optimum:
            interval = Interval(float(N), float(low), float(high))
            return Optimum(float(budget), interval, float(D), self.measured.beyond(N, D), moved)

        if isinstance(self.refitted, str):
            return told(N, D)
        product = budget / self.flops
        moved = float(best_parameters(self.refitted, product))
        return told(N, D, told(moved, product / moved))

    @property
    def determined(self) -> tuple[float, float] | None:
        """The least and the greatest budget whose optimum was measured around; None if there is none."""
        scales, a = optimum(np.array([self.fitted.law.coefficients]), np.array([self.fitted.law.exponents]))
        models = np.array([self.measured.smallest, self.measured.largest])
        lengths = np.array([self.measured.shortest, self.measured.most_tokens])
        with np.errstate(over="ignore"):
            budgets_N = self.flops * (models / scales[0]) ** (1 / a[0])
            budgets_D = self.flops * (lengths * scales[0]) ** (1 / (1 - a[0]))
        low, high = max(budgets_N[0], budgets_D[0]), min(budgets_N[1], budgets_D[1])
        return (float(low), float(high)) if low < high else None

    @property
    def middle(self) -> float | None:
        """The geometric middle of the determined budgets: that of the run which puts the optimum to the test."""
        return math.sqrt(self.determined[0] * self.determined[1]) if self.determined else None

    def plain(self, budgets: Array) -> dict[str, Any]:
        """As it stands in a JSON file, with the optima at budgets."""
        c = {"flops_per_parameter_and_token": self.flops, "least": self.extremes[0], "greatest": self.extremes[1]}
        optima = {"determined": self.determined, "optimal": [self.optimum(budget).plain() for budget in budgets]}
        unknown = {"without_smallest_D": {"reason": self.refitted}} if isinstance(self.refitted, str) else {}
        return c | {"a": asdict(self.a), "b": asdict(self.b)} | optima | unknown


def best_parameters(fitted: Fit, product: ArrayLike) -> Array:
    """N of least loss where N D is a product."""
    scales, a = optimum(np.array([fitted.law.coefficients]), np.array([fitted.law.exponents]))
    return np.asarray(scales[0] * np.asarray(product, float) ** a[0])


def ends_of_best(fitted: Fit, product: ArrayLike) -> tuple[Array, Array]:
    """The ends of the interval of `best_parameters` by the bootstrap."""
    scales_R, a_R = optimum(fitted.coefficients_RK, fitted.exponents_RK)
    powers = np.exp(np.multiply.outer(a_R, np.log(np.asarray(product, float))))
    return fitted.ends(powers * scales_R.reshape(-1, *[1] * (powers.ndim - 1)))


def optimum(coefficients_RK: Array, exponents_RK: Array) -> tuple[Array, Array]:
    """G and a of `N = G (C/c)^a`, (R,) each; where a law has no such optimum, G is 0 or infinite."""
    (A, B), (alpha, beta) = coefficients_RK.T, exponents_RK.T
    with np.errstate(divide="ignore"):
        return np.exp((np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)), beta / (alpha + beta)


def without_smallest(sizes: Mapping[str, ArrayLike], losses: ArrayLike, **options: Any) -> Fit:
    """L(N, D) again, without the runs of the smallest D; ValueError if the others are too few, or determine too little.

    Args:
        sizes: As `fit` takes them.
        losses: As `fit` takes them.
        options: `level`, `resamples` and `seed` of `fit`.
    """
    kept = size_classes(sizes["D"]) > 0
    fitted = fit({name: np.asarray(values, float)[kept] for name, values in sizes.items()},
                 np.asarray(losses, float)[kept], **options)  # fmt: skip
    if fitted.undetermined:
        raise ValueError(f"{' and '.join(fitted.undetermined)} {UNDETERMINED}")
    return fitted


def frontier(
    fitted: Fit, refitted: Fit | str, N: ArrayLike, D: ArrayLike, flops: ArrayLike, epoch: float | None = None
) -> Frontier:
    """The compute-optimal sizes by L(N, D); ValueError if it leaves an exponent undetermined.

    Args:
        fitted: L(N, D).
        refitted: The same without the runs of the smallest D, or the reason why there is none.
        N: Parameters of the runs.
        D: Their tokens.
        flops: Their FLOPs.
        epoch: Tokens in one pass over their data; None where they never repeat.
    """
    if fitted.undetermined:
        raise ValueError(f"no frontier: {' and '.join(fitted.undetermined)} {UNDETERMINED}")
    N, D = np.asarray(N, float), np.asarray(D, float)
    ratios = np.asarray(flops, float) / (N * D)
    if not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError("no frontier: runs without FLOPs")
    (alpha, beta), refits_RK = fitted.law.exponents, fitted.exponents_RK
    total, total_R = alpha + beta, refits_RK.sum(-1)
    a, b = (fitted.around(x / total, refits_RK[:, k] / total_R) for x, k in ((beta, 1), (alpha, 0)))
    measured = Measured(float(N.min()), float(N.max()), float(D.min()), float(D.max()), epoch)
    extremes = (float(ratios.min()), float(ratios.max()))
    return Frontier(fitted, refitted, measured, float(np.median(ratios)), extremes, a, b)
