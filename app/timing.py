"""Time one thing against another, fairly on a machine that is never quiet.

A and B run in turn in one process, A B A B ..., so that whatever slows the machine slows both. Each pair gives a ratio
A / B, and the median over the pairs forgets those that something disturbed in between. What is timed is not known here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]


def nothing() -> None:
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
    seconds_a, seconds_b = [], []
    for _ in range(warmup + repeats):
        prepare()
        seconds_a.append(seconds(a, sync, clock))
        seconds_b.append(seconds(b, sync, clock))
    return Ratio.of(seconds_a[warmup:], seconds_b[warmup:])


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
