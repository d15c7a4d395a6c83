"""How a configuration is chosen: successive halving (Jamieson & Talwalkar, arXiv 1502.07943), by validation alone.

N trials run at a ninth of the budget, the best third of them at a third of it, the best third of these at all of it;
below nine trials, or three, the shorter rungs fall away. What ranks first is to have learned at all, then the loss. Of
a rung in which nothing was learned all go on, but for those that diverged, as noise must not drop slow learners.

    N = 9:    9 trials at 1/9    3 at 1/3    1 at 1        three budgets in all

If the best learning rate lies in the outermost tenth of the range, by the logarithm, the range is widened there by a
factor of ten, and a third of N further trials go from rung to rung, with what else the best one has; twice at most.

All of it is a function of the results so far: what is decided can be asked at any time, and a study goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from app.compare.space import Trial, rounded

KEPT = 3  # one of so many goes on, at so many times the budget
MAX_RUNGS = 3
EDGE = 0.1  # of the range of learning rates, by the logarithm
WIDER = 10.0  # what the range is widened by
MAX_WIDENINGS = 2


class Result(NamedTuple):
    """How a trial ended: whether it learned anything, and its validation loss, infinite if it diverged."""

    learned: bool
    loss: float

    @property
    def rank(self) -> tuple[bool, float]:
        """The least comes first."""
        return not self.learned, self.loss


Results = Callable[[Trial, float], Result | None]  # of a trial at a share of the budget; None where it is not done


@dataclass
class Search:
    """What the results so far decide.

    Attributes:
        runs: Trials with the share of the budget that each has, in the order in which they were decided.
        span: Least and greatest factor of the learning rate, widened or not.
        chosen: The best trial of those that had the whole budget; None if none of them learned anything.
        ended: Whether no further run is to come.
        widenings: How often the range was widened.
    """

    runs: list[tuple[Trial, float]]
    span: tuple[float, float]
    chosen: Trial | None = None
    ended: bool = False
    widenings: int = 0

    @property
    def edge(self) -> str:
        """At which end of the range the chosen learning rate lies, "low" or "high"; empty if at none."""
        return edge(self.chosen.factor, self.span) if self.chosen else ""


def shares(num_trials: int) -> list[float]:
    """The parts of the budget that the rungs have, the last all of it."""
    rungs = min(MAX_RUNGS, 1 + int(math.log(max(num_trials, 1), KEPT) + 1e-9))
    return [KEPT ** (rung + 1 - rungs) for rung in range(rungs)]


def num_kept(num_trials: int) -> int:
    """How many of so many trials go on to the next rung."""
    return max(1, num_trials // KEPT)


def num_runs(num_trials: int) -> int:
    """Runs of a search in which the first rung learns something, and that is not widened."""
    total, trials = 0, num_trials
    for _ in shares(num_trials):
        total, trials = total + trials, num_kept(trials)
    return total


def edge(factor: float, span: tuple[float, float]) -> str:
    """At which end of a range a factor lies."""
    low, high = map(math.log, span)
    margin = EDGE * (high - low)
    if low == high:
        return ""
    if math.log(factor) < low + margin:
        return "low"
    return "high" if math.log(factor) > high - margin else ""


def halve(trials: Sequence[Trial], rungs: Sequence[float], results: Results) -> tuple[list[tuple[Trial, float]], bool]:
    """Send trials from rung to rung; returns the runs decided, and whether all of them are done."""
    decided: list[tuple[Trial, float]] = []
    for share in rungs:
        decided += [(trial, share) for trial in trials]
        ranked = [(trial, results(trial, share)) for trial in trials]
        done = [(trial, result) for trial, result in ranked if result is not None]
        if len(done) < len(ranked):
            return decided, False
        finite = sorted((pair for pair in done if math.isfinite(pair[1].loss)), key=lambda pair: pair[1].rank)
        kept = num_kept(len(done)) if any(result.learned for _, result in finite) else len(finite)
        trials = [trial for trial, _ in finite[:kept]]
    return decided, True


def search(
    trials: Sequence[Trial],
    span: tuple[float, float],
    rungs: Sequence[float],
    results: Results,
    widenings: int = MAX_WIDENINGS,
) -> Search:
    """Search as far as the results go.

    Args:
        trials: The first ones, by number.
        span: Least and greatest factor of the learning rate among which they were drawn.
        rungs: Shares of the budget, the last of which is all of it.
        results: What is done.
        widenings: How often the range may be widened.
    """
    found = Search([], span)
    batch, number = list(trials), len(trials)
    while True:
        decided, is_done = halve(batch, rungs, results)
        found.runs += decided
        if not is_done:
            return found
        found.chosen = best(found.runs, rungs[-1], results)
        if not found.edge or found.widenings == widenings:
            found.ended = True
            return found
        batch = further(found, number, num_kept(len(trials)))
        number += len(batch)
        low, high = found.span
        found.span = (low / WIDER, high) if found.edge == "low" else (low, high * WIDER)
        found.widenings += 1


def best(runs: Sequence[tuple[Trial, float]], share: float, results: Results) -> Trial | None:
    """The best of the trials that had this share of the budget and learned something."""
    done = [(trial, results(trial, share)) for trial, had in runs if had == share]
    learned = [(trial, result) for trial, result in done if result and result.learned and math.isfinite(result.loss)]
    return min(learned, key=lambda pair: pair[1].rank)[0] if learned else None


def further(found: Search, number: int, num: int) -> list[Trial]:
    """Trials beyond the end of the range at which the best lies: its options, at evenly spread learning rates."""
    assert found.chosen is not None
    low, high = found.span
    factors = (WIDER ** ((place + 0.5) / num) for place in range(num))
    return [
        replace(found.chosen, number=number + place, factor=rounded(low / by if found.edge == "low" else high * by))
        for place, by in enumerate(factors)
    ]
