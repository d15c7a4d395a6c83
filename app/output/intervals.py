"""Means of a few values with Student's interval, as for differences paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 %, by degrees of freedom
UNKNOWN = "not known"


@dataclass(frozen=True)
class Interval:
    """A value, and between which ends it lies; None where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None


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


def t_quantile(freedom: int) -> float:
    """Student's 97.5 % quantile; beyond the table by Fisher's expansion, right to 1e-4."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def signed(interval: Interval) -> str:
    """A difference with its interval, each with its sign."""
    ends = UNKNOWN if interval.low is None else f"{interval.low:+.3f}, {interval.high:+.3f}"
    return f"{interval.value:+.3f} [{ends}]"
