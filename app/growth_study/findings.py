"""What a growth study shows: losses at equal FLOPs, and the FLOPs that training from scratch needs for equal loss.

The runs from scratch, each with a schedule of its own, give the loss as a function of the FLOPs; between them log FLOPs
are interpolated, beyond them nothing is: a loss outside their range gives a bound.

    compute saved = 1 - F(grown) / F(from scratch, at the same loss);    negative: lost

Shapes: F budgets of the runs from scratch, S seeds.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.growth_study.plan import RECIPES, SCRATCH, SMALL
from app.output.intervals import LEVEL, Interval, paired_difference
from app.study.study import StudiedRun, Study

Array = NDArray[np.float64]
EXACT_JUMP = 0.005  # bits per character that exact growth may change
LOSS = "test/bits_per_char"
RESAMPLES = 2000


@dataclass(frozen=True)
class Saved:
    """Part of the compute that growing saved; negative where it lost.

    Attributes:
        interval: By resampling the seeds.
        least: What the curve from scratch can show at least; a value there is a bound, "at most".
        most: What it can show at most; a value there is a bound, "at least".
    """

    interval: Interval
    least: float
    most: float


@dataclass(frozen=True)
class RecipeOutcome:
    """One recipe on one corpus.

    Attributes:
        corpus: Label of the text.
        recipe: Its name, `scratch` with its budget among them.
        seeds: Whose runs were measured.
        diverged: Number of runs that diverged, which count in nothing else.
        stages: Steps of each stage.
        parameters: Trained numbers in each stage.
        flops: FLOPs of the whole run, all stages counted.
        seconds: Seconds of training, mean over the seeds.
        losses: Bits per character at the end, a seed each.
        difference: Difference from the run from scratch at equal FLOPs, paired by seed; None without that run.
        saved: None where there is no curve, and for the runs from scratch.
        jump: The largest change of bits per character by growth itself, over growths and seeds; None without growth.
    """

    corpus: str
    recipe: str
    seeds: list[int]
    diverged: int
    stages: list[int]
    parameters: list[int]
    flops: float
    seconds: float
    losses: list[float]
    difference: Interval | None = None
    saved: Saved | None = None
    jump: float | None = None

    @property
    def is_grown(self) -> bool:
        """Whether the recipe grows."""
        return self.recipe in RECIPES

    @property
    def is_compared(self) -> bool:
        """Whether the recipe grows, and its difference from training from scratch is known."""
        return self.is_grown and self.difference is not None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided` than from scratch at equal FLOPs, by the interval of the difference."""
        d = self.difference
        if d is None or d.low is None or d.high is None or d.low <= 0 <= d.high:
            return "undecided"
        return "better" if d.high < 0 else "worse"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"verdict": self.verdict if self.is_grown or self.recipe == SMALL else None}


# Curves ---------------------------------------------------------------------------------------------------------------


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


def compute_saved(flops: float, losses_S: Array, flops_F: Array, losses_SF: Array) -> Saved:
    """Compute saved by runs of so many FLOPs that end at these losses, against a curve from scratch of each seed.

    The value is that of the means over the seeds; for the interval seeds are drawn again, runs of a seed together.
    """

    def of(seeds: Sequence[int]) -> float:
        rows = list(seeds)
        return 1 - flops / flops_for(float(losses_S[rows].mean()), flops_F, losses_SF[rows].mean(0))

    S = len(losses_S)
    low = high = None
    if S > 1:
        low, high = (float(q) for q in np.quantile([of(r) for r in resamples(S)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Saved(Interval(of(range(S)), low, high), 1 - flops / float(flops_F[0]), 1 - flops / float(flops_F[-1]))


def resamples(S: int) -> list[tuple[int, ...]]:
    """Seeds drawn with replacement: all ways if they are few, else some at random, the same each time."""
    if S <= 5:
        return list(itertools.product(range(S), repeat=S))
    return [tuple(row) for row in np.random.default_rng(0).integers(S, size=(RESAMPLES, S)).tolist()]


# Findings -------------------------------------------------------------------------------------------------------------


def loss_of(run: StudiedRun) -> float | None:
    """Bits per character at the end of a run; None if it diverged."""
    value = run.record.get("test", {}).get(LOSS)
    return None if value is None else float(value)


def by_seed(runs: Sequence[StudiedRun]) -> dict[int, float]:
    """The losses of the runs of one row that did not diverge."""
    return {run.labels["seed"]: loss for run in runs if (loss := loss_of(run)) is not None}


def jumps(run: StudiedRun) -> list[float]:
    """Changes of bits per character that growth itself made, one a growth."""
    events = [event for event in run.record["growth_events"] if "bits_per_char_after" in event]
    return [event["bits_per_char_after"] - event["bits_per_char_before"] for event in events]


def recipe_outcome(study: Study, corpus: str, recipe: str, budget: float = 1.0) -> RecipeOutcome | None:
    """What the runs of one row show; None if there are none."""
    runs = study.runs(corpus=corpus, recipe=recipe, budget=budget)
    if not runs:
        return None
    ended = [run for run in runs if loss_of(run) is not None]
    shown = ended or runs
    losses, flops = by_seed(runs), statistics.fmean(run.record["flops"] for run in shown)
    scratch = {} if recipe == SCRATCH else by_seed(study.runs(corpus=corpus, recipe=SCRATCH, budget=1.0))
    difference = paired_difference(losses, scratch)
    return RecipeOutcome(
        corpus=corpus,
        recipe=recipe if recipe != SCRATCH else f"{SCRATCH} x {budget:g}",
        seeds=list(losses),
        diverged=len(runs) - len(ended),
        stages=shown[0].labels["stages"],
        parameters=shown[0].labels["parameters"],
        flops=flops,
        seconds=statistics.fmean(run.record["seconds"] for run in shown),
        losses=list(losses.values()),
        difference=difference,
        saved=saved_against_scratch(study, corpus, flops, losses) if difference else None,
        jump=max((jump for run in ended for jump in jumps(run)), key=abs, default=None),
    )


def saved_against_scratch(study: Study, corpus: str, flops: float, losses: dict[int, float]) -> Saved | None:
    """Compute saved by a row, over the seeds that have the whole curve from scratch; None without two points of it."""
    budgets = sorted({run.labels["budget"] for run in study.runs(corpus=corpus, recipe=SCRATCH)})
    runs_F = [study.runs(corpus=corpus, recipe=SCRATCH, budget=budget) for budget in budgets]
    curves_F = [by_seed(runs) for runs in runs_F]
    seeds = [seed for seed in losses if all(seed in curve for curve in curves_F)]
    if len(budgets) < 2 or not seeds:
        return None
    flops_F = [next(run.record["flops"] for run in runs if run.labels["seed"] == seeds[0]) for runs in runs_F]
    losses_SF = np.array([[curve[seed] for curve in curves_F] for seed in seeds])
    return compute_saved(flops, np.array([losses[seed] for seed in seeds]), np.array(flops_F), losses_SF)


def recipe_outcomes(study: Study) -> list[RecipeOutcome]:
    """All rows of the tables, in the order of the plan."""
    keys = dict.fromkeys((run.labels["corpus"], run.labels["recipe"], run.labels["budget"]) for run in study.plan)
    return [outcome for key in keys if (outcome := recipe_outcome(study, *key))]
