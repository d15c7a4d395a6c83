"""What a growth study shows: losses at equal FLOPs, what compute that saves, and what the chain of sizes gives.

A grown arm is compared with training from scratch to the same size at the same FLOPs by Welch's interval, as runs of
different models share no noise worth pairing; the p values of a question are corrected together by Holm's method, and
only they make a verdict. Compute saved is that difference, read off the losses from scratch at several budgets.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.growth_study.arms import FAMILY, OF_RECIPES, SHARES, SIZES
from app.growth_study.curves import Saved, compute_saved
from app.growth_study.recipes import GROWN, SCRATCH
from app.output.intervals import LEVEL, Difference, Interval, holm, welch_difference
from app.study.rates import RUNG, SEARCH, validation_loss
from app.study.study import StudiedRun, Study

LOSS = "test/bits_per_char"
COMPARED = (SIZES, SHARES, OF_RECIPES, FAMILY)  # questions whose grown arms are compared with training from scratch


@dataclass(frozen=True)
class Row:
    """What the runs of one arm show.

    Attributes:
        arm, question, recipe, tokens, depth, budget, share: What it is.
        factor: Its learning rate, as a multiple of the recipe's.
        search: How that was chosen: how many were tried, at which end it stands, and of which arm it is.
        runs: Names of the runs that were measured.
        seeds: Their seeds.
        diverged: Number of runs that diverged, which count in nothing else.
        stages: Steps of each stage.
        parameters: Trained numbers in each stage.
        flops: FLOPs of the whole run, all stages counted.
        after: Those behind the first growth, which alone count where the base is there already; None without growth.
        shared: Those that a branch has in common with the chain.
        seconds: Of training, mean over the seeds.
        losses: Bits per character at the end, a seed each.
        difference: From training from scratch to the same size at the same FLOPs.
        p: Its p value, corrected for all of the question.
        saved: Compute saved, all FLOPs counted.
        sunk: The same where only what comes after the first growth counts.
        rival: Difference of another recipe from the main one, at the same size.
        rival_p: Its p value, corrected for all recipes.
        jump: The largest change of bits per character by growth itself, over growths and seeds.
    """

    arm: str
    question: str
    recipe: str
    tokens: float
    depth: int
    budget: float
    share: float
    factor: float
    search: dict[str, Any]
    runs: list[str]
    seeds: list[int]
    diverged: int
    stages: list[int]
    parameters: list[int]
    flops: float
    after: float | None
    shared: float
    seconds: float
    losses: list[float]
    difference: Difference | None = None
    p: float | None = None
    saved: Saved | None = None
    sunk: Saved | None = None
    rival: Difference | None = None
    rival_p: float | None = None
    jump: float | None = None

    @property
    def size(self) -> tuple[float, int]:
        """The final size."""
        return self.tokens, self.depth

    @property
    def multiple(self) -> float:
        """The final size along what grows."""
        return self.tokens if self.depth == 1 else self.depth

    @property
    def grows(self) -> bool:
        """Whether it has more than one size."""
        return len(self.stages) > 1

    @property
    def is_scratch(self) -> bool:
        """Whether it is trained from scratch."""
        return self.recipe == SCRATCH

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided` than from scratch at equal FLOPs; empty where that is not known."""
        return verdict(self.difference, self.p)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"verdict": self.verdict}


def verdict(difference: Difference | None, p: float | None) -> str:
    """What a difference of losses and its corrected p value say; empty where they are not known."""
    if difference is None or p is None:
        return ""
    if p >= 1 - LEVEL:
        return "undecided"
    return "better" if difference.value < 0 else "worse"


# Runs -----------------------------------------------------------------------------------------------------------------


def loss_of(run: StudiedRun) -> float | None:
    """Bits per character at the end of a run; None if it diverged."""
    value = run.record.get("test", {}).get(LOSS)
    return None if value is None else float(value)


def jumps(run: StudiedRun) -> list[float]:
    """Changes of bits per character that growth itself made, one a growth."""
    events = [event for event in run.record["growth_events"] if "bits_per_char_after" in event]
    return [event["bits_per_char_after"] - event["bits_per_char_before"] for event in events]


def flops_after(run: StudiedRun) -> float | None:
    """FLOPs that a run spent behind its first growth; None without one."""
    events = run.record["growth_events"]
    return run.record["flops"] - events[0]["flops"] if events else None


def measured_runs(study: Study) -> list[str]:
    """Names of the runs that count and did not diverge."""
    return [run.name for run in study.runs() if RUNG not in run.labels and validation_loss(run.record) is not None]


def row_of(runs: Sequence[StudiedRun]) -> Row:
    """What the runs of an arm show by themselves."""
    ended = [run for run in runs if loss_of(run) is not None]
    shown, labels = ended or runs, runs[0].labels
    afters = [after for run in shown if (after := flops_after(run)) is not None]
    names = (
        "arm",
        "question",
        "recipe",
        "tokens",
        "depth",
        "budget",
        "share",
        "factor",
        "stages",
        "parameters",
        "shared",
    )
    return Row(
        **{name: labels[name] for name in names},
        search=labels[SEARCH],
        runs=[run.name for run in ended],
        seeds=[run.labels["seed"] for run in ended],
        diverged=len(runs) - len(ended),
        flops=statistics.fmean(run.record["flops"] for run in shown),
        after=statistics.fmean(afters) if afters else None,
        seconds=statistics.fmean(run.record["seconds"] for run in shown),
        losses=[loss for run in ended if (loss := loss_of(run)) is not None],
        jump=max((jump for run in ended for jump in jumps(run)), key=abs, default=None),
    )


# Rows -----------------------------------------------------------------------------------------------------------------


def table_rows(study: Study) -> list[Row]:
    """All rows, in the order of the plan, compared with training from scratch and with the main recipe."""
    names = dict.fromkeys(run.labels["arm"] for run in study.plan if RUNG not in run.labels)
    runs = [[run for run in study.runs(arm=name) if RUNG not in run.labels] for name in names]
    rows = [row_of(of_arm) for of_arm in runs if of_arm]
    rows = [compared(row, rows) for row in rows]
    for question in COMPARED:
        rows = corrected(rows, question)
    return rows


def compared(row: Row, rows: Sequence[Row]) -> Row:
    """A row with its differences, and what they save; what does not grow has nothing to be compared with."""
    if not row.grows or not row.losses:
        return row
    if partner := partner_of(row, rows):
        difference = welch_difference(row.losses, partner.losses)
        saved = saved_of(row.flops, difference, partner, rows)
        sunk = None if row.after is None else saved_of(row.after, difference, partner, rows)
        row = replace(row, difference=difference, saved=saved, sunk=sunk)
    main = next((r for r in rows if (r.question, r.recipe, r.size) == (SIZES, GROWN, row.size)), None)
    if row.question == OF_RECIPES and main and main.losses:
        row = replace(row, rival=welch_difference(row.losses, main.losses))
    return row


def partner_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Training from scratch to the same size at the same FLOPs; None where it is not done, or diverged."""
    same = (r for r in rows if r.is_scratch and r.losses and (r.size, r.budget) == (row.size, row.budget))
    return next(same, None)


def saved_of(flops: float, difference: Interval, partner: Row, rows: Sequence[Row]) -> Saved | None:
    """Compute saved by so many FLOPs, against the curve from scratch around a partner; None without two points."""
    curve = {partner.flops: 0.0}
    for row in rows:
        if row.is_scratch and row.size == partner.size and row is not partner:
            changes = paired(row, partner)
            curve |= {row.flops: statistics.fmean(changes)} if changes else {}
    ordered = sorted(curve)
    return compute_saved(flops, difference, ordered, [curve[f] for f in ordered]) if len(curve) > 1 else None


def paired(row: Row, partner: Row) -> list[float]:
    """Differences of losses at the seeds that both have."""
    theirs = dict(zip(partner.seeds, partner.losses, strict=True))
    return [loss - theirs[seed] for seed, loss in zip(row.seeds, row.losses, strict=True) if seed in theirs]


def corrected(rows: Sequence[Row], question: str) -> list[Row]:
    """The rows with p values corrected for how many tests there are in a question, each kind of test for itself."""
    p_values: dict[tuple[str, str], float] = {}
    for field in ("difference", "rival"):
        tests = {
            row.arm: d.p for row in rows if row.question == question and (d := getattr(row, field)) and d.p is not None
        }
        p_values |= {(field, arm): p for arm, p in zip(tests, holm(list(tests.values())), strict=True)}
    return [
        replace(row, p=p_values.get(("difference", row.arm)), rival_p=p_values.get(("rival", row.arm)))
        if row.question == question
        else row
        for row in rows
    ]


# Sizes and the family -------------------------------------------------------------------------------------------------


def ladder(rows: Sequence[Row], deep: bool) -> list[Row]:
    """The rows from scratch with all of the budget, by size: along the layers, or along the parameter tokens."""
    found = [row for row in rows if row.is_scratch and row.budget == 1 and row.losses]
    found = [row for row in found if (row.tokens == 1 if deep else row.depth == 1)]
    return sorted(found, key=lambda row: row.depth if deep else row.tokens)


def mean_loss(row: Row) -> float:
    """Over the seeds, of which there is one at least."""
    return statistics.fmean(row.losses)


def best_size(rows: Sequence[Row], deep: bool) -> Row | None:
    """The compute-optimal size: from scratch it ends with the least loss of all sizes at this budget."""
    return min(ladder(rows, deep), key=mean_loss, default=None)


@dataclass(frozen=True)
class Family:
    """All sizes of the chain, each trained to its end.

    Attributes:
        members: By size the chain's branches, and the chain itself.
        partners: From scratch, to the same size at the same FLOPs; the first member is that itself.
        chain: FLOPs of the chain and of what its branches have beyond it.
        scratch: FLOPs from scratch, each size with those of its member.
        at_loss: FLOPs from scratch for the losses of the members, least and greatest by the ends of their intervals.
    """

    members: list[Row]
    partners: list[Row]
    chain: float
    scratch: float
    at_loss: Interval | None


def family_of(rows: Sequence[Row]) -> Family | None:
    """What the chain gives; None as long as a part of it is missing."""
    branches = [row for row in rows if row.question == FAMILY and not row.is_scratch]
    if not branches:
        return None
    name = branches[0].search["of"]
    members = [*branches, *(row for row in rows if row.arm == name)]
    partners = [partner for row in members if (partner := partner_of(row, rows) if row.grows else row)]
    if len(partners) < len(members) or len(members) == len(branches) or not all(row.losses for row in members):
        return None
    chain = members[-1].flops + sum(row.flops - row.shared for row in branches)
    return Family(members, partners, chain, sum(row.flops for row in partners), flops_at_loss(members))


def flops_at_loss(members: Sequence[Row]) -> Interval | None:
    """What the losses of the members cost from scratch, with the sums of the ends; None where that is not known."""
    itself = Interval(0.0, 0.0, 0.0)  # is what a member saves that does not grow
    saved = [itself if not row.grows else row.saved.interval if row.saved else None for row in members]
    intervals = [(row.flops, each) for row, each in zip(members, saved, strict=True) if each]
    if len(intervals) < len(members):
        return None
    value = sum(flops / (1 - each.value) for flops, each in intervals)
    lows = [flops / (1 - each.low) for flops, each in intervals if each.low is not None]
    highs = [flops / (1 - each.high) for flops, each in intervals if each.high is not None]
    whole = len(lows) == len(highs) == len(members)
    return Interval(value, sum(lows) if whole else None, sum(highs) if whole else None)
