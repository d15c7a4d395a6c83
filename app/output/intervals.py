"""Means of a few values with Student's interval, paired by seed or not, and corrected for how many were tested."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
TINY = 1e-300  # in the place of a denominator that vanishes
MAX_TERMS = 1000  # of a continued fraction, which needs tens
UNKNOWN = "not known"


@dataclass(frozen=True)
class Interval:
    """A value, and between which ends it lies; None where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two means, and how likely one as large is where there is none; None where that is not known."""

    p: float | None = None


def t_interval(differences: Sequence[float]) -> Interval:
    """Mean of differences with Student's interval; without ends for a single one."""
    mean, S = statistics.fmean(differences), len(differences)
    if S < 2:
        return Interval(mean)
    half = t_quantile(S - 1) * statistics.stdev(differences) / S**0.5
    return Interval(mean, mean - half, mean + half)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Mean difference at the seeds that both have, with Student's interval; None where there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Difference of the means of two samples whose variances may differ, with Welch's interval and two-sided p.

    B. L. Welch, Biometrika 34 (1947): t on (a + b)^2 / (a^2 / (n - 1) + b^2 / (m - 1)) degrees of freedom, where a and
    b are the squared standard errors. Without ends where a sample has a single value.
    """
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(value)
    a, b = (statistics.variance(sample) / len(sample) for sample in (ours, theirs))
    if not a + b:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    share = a / (a + b)  # so that no square of a small variance vanishes
    freedom = 1 / (share**2 / (len(ours) - 1) + (1 - share) ** 2 / (len(theirs) - 1))
    error = math.sqrt(a + b)
    half = t_quantile(freedom) * error
    return Difference(value, value - half, value + half, 2 * t_tail(abs(value) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for how many there are, by steps down (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest, tests = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(tests), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (tests - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def t_tail(t: float, freedom: float) -> float:
    """Probability that Student's t is above t >= 0."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Between minus this and this lies Student's t with probability `level`; by bisection."""
    tail, low, high = (1 - level) / 2, 0.0, 1.0
    while t_tail(high, freedom) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * beta_fraction(a, b, x) / a


def beta_fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d_1 / (1 + d_2 / ...)), the fraction of DLMF 8.17.22, evaluated from the front (Lentz's method)."""
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or TINY)
    value = d
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            c, d = (1 + term / c) or TINY, 1 / ((1 + term * d) or TINY)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def signed(interval: Interval) -> str:
    """A difference with its interval, each with its sign."""
    ends = UNKNOWN if interval.low is None else f"{interval.low:+.3f}, {interval.high:+.3f}"
    return f"{interval.value:+.3f} [{ends}]"
