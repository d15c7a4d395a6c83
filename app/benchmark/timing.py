"""Time things against each other, fairly on a machine that is never quiet.

A and B run in turn in one process, A B A B ..., so that whatever slows the machine slows both. Each pair gives a ratio
A / B, and the median over the pairs forgets those that something disturbed in between. So with more than two: each
round runs all, and ratios are taken within a round. What is timed is not known here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
MIN_ROUNDS = 3  # fewer have no median to speak of


def nothing(*_: object) -> None:
    """Do nothing: in the place of `prepare` or `sync` where there is nothing to do."""


@dataclass(frozen=True)
class Ratio:
    """Seconds of A over seconds of B: the median, least and largest over the pairs, and the median seconds of each."""

    median: float
    min: float
    max: float
    seconds_a: float
    seconds_b: float
    pairs: int

    @classmethod
    def of(cls, seconds_a: Sequence[float], seconds_b: Sequence[float]) -> Ratio:
        """Pair the seconds one by one; both must have the same, positive, length."""
        ratios = [a / b for a, b in zip(seconds_a, seconds_b, strict=True)]
        median, median_a, median_b = (statistics.median(values) for values in (ratios, seconds_a, seconds_b))
        return cls(median, min(ratios), max(ratios), median_a, median_b, len(ratios))


def seconds(work: Callable[[], object], sync: Callable[[], None] = nothing, clock: Clock = time.perf_counter) -> float:
    """Seconds that `work` takes; `sync` waits for a device that works on its own."""
    sync()
    start = clock()
    work()
    sync()
    return clock() - start


def in_turn(
    works: Sequence[Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 3,
    budget: float = math.inf,
    prepare: Callable[[], object] = nothing,
    sync: Callable[[], None] = nothing,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Run `prepare` and then all `works`, round by round; returns the seconds of each work, one a round.

    The first `warmup` rounds are not counted, nor is `prepare`. At most `repeats` rounds follow; they end early once
    all took `budget` seconds, but not before there are MIN_ROUNDS.
    """
    start = clock()
    rounds: list[list[float]] = []
    while len(rounds) < warmup + repeats:
        if len(rounds) >= warmup + MIN_ROUNDS and clock() - start >= budget:
            break
        prepare()
        rounds.append([seconds(work, sync, clock) for work in works])
    return [list(of_one) for of_one in zip(*rounds[warmup:], strict=True)]


def interleaved(
    a: Callable[[], object],
    b: Callable[[], object],
    repeats: int,
    *,
    warmup: int = 3,
    prepare: Callable[[], object] = nothing,
    sync: Callable[[], None] = nothing,
    clock: Clock = time.perf_counter,
) -> Ratio:
    """Run `prepare`, a and b in turn, `warmup` times unheeded and `repeats` times measured; `prepare` is not timed."""
    return Ratio.of(*in_turn((a, b), repeats, warmup=warmup, prepare=prepare, sync=sync, clock=clock))


def fitted_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """The x of the power law `value ~ length^x` that fits best: least squares on the logarithms, 2 lengths or more."""
    return statistics.linear_regression([*map(math.log, lengths)], [*map(math.log, values)]).slope


class Stopwatch:
    """Times, by the chunk, steps that somebody else's loop makes, and `other` after each chunk.

    Call `start` before the first step and `tick` after each; both ignore their arguments, so they can be hooks.
    """

    def __init__(
        self,
        other: Callable[[], object],
        chunk: int,
        sync: Callable[[], None] = nothing,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.other, self.chunk, self.sync, self.clock = other, chunk, sync, clock
        self.seconds: list[float] = []
        self.seconds_other: list[float] = []
        self.ticks, self.started = 0, 0.0

    def start(self, *_: object) -> None:
        """Begin a chunk."""
        self.sync()
        self.started = self.clock()

    def tick(self, *_: object) -> None:
        """Count a step; the last of a chunk ends it, times `other` and begins the next."""
        self.ticks += 1
        if self.ticks % self.chunk:
            return
        self.sync()
        self.seconds.append(self.clock() - self.started)
        self.seconds_other.append(seconds(self.other, self.sync, self.clock))
        self.start()

    def ratio(self, warmup: int = 1) -> Ratio:
        """The loop's steps against `other`, without the first `warmup` chunks; its seconds are those of one step."""
        per_step, per_step_other = (
            [value / self.chunk for value in values[warmup:]] for values in (self.seconds, self.seconds_other)
        )
        return Ratio.of(per_step, per_step_other)
