"""What a comparison shows: for each model, task, width and budget the quality at the learning rate that was chosen.

The learning rate is that of least validation loss at the end of the first seed's runs; the test is only ever reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.output.intervals import Interval, paired_difference
from app.study.study import Record, StudiedRun, Study

LABELS = ("task", "model", "d_model", "budget")  # of a group of runs, over which learning rate and seed vary
QUALITIES = {"bits_per_char": "bits/char", "accuracy": "accuracy"}  # the first that a test has is what counts


@dataclass(frozen=True)
class Row:
    """A model on a task, at one width and budget.

    Attributes:
        task, model, d_model, budget: What it is.
        unit: Unit of the budget.
        factor: The learning rate that was chosen, as a multiple of the experiment file's; None if all diverged.
        at_edge: Whether it is the least or the greatest of several, so that a better one may lie beyond.
        seeds: Whose runs were measured.
        diverged: Runs at the chosen learning rate that diverged, which count in nothing else.
        parameters, tokens, flops, seconds: Means over the seeds; seconds of training.
        quality: Name of what is measured.
        values: By slice, of each seed; the first slice is the whole test.
        difference: Difference of the whole test from the first model's, paired by seed, with a t interval.
    """

    task: str
    model: str
    d_model: int
    budget: float
    unit: str
    factor: float | None
    at_edge: bool
    seeds: list[int]
    diverged: int
    parameters: int
    tokens: float
    flops: float
    seconds: float
    quality: str
    values: dict[str, list[float]]
    difference: Interval | None = None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What models are compared at."""
        return self.task, self.d_model, self.budget

    def by_seed(self) -> dict[int, float]:
        """The whole test of each seed."""
        return dict(zip(self.seeds, self.values.get("", []), strict=False))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def validation_loss(record: Record | None) -> float | None:
    """At the end of a run; None if it diverged."""
    if not record or record["status"] != "finished":
        return None
    value = record["final"].get("val/loss")
    return None if value is None else float(value)


def best_factor(records: Mapping[float, Record | None]) -> float | None:
    """The learning rate of least validation loss; None if all diverged."""
    losses = {factor: loss for factor, record in records.items() if (loss := validation_loss(record)) is not None}
    return min(losses, key=losses.__getitem__) if losses else None


def groups(study: Study) -> list[list[StudiedRun]]:
    """The finished runs of each model, task, width and budget, in the order of the plan; each has one run or more."""
    labels = list(dict.fromkeys(tuple(run.labels[name] for name in LABELS) for run in study.plan))
    runs = (study.runs(**dict(zip(LABELS, group, strict=True))) for group in labels)
    return [group for group in runs if group]


def tried_factors(runs: Sequence[StudiedRun]) -> dict[float, Record]:
    """The learning rates that the first seed of a group tried, and their records."""
    return {run.labels["factor"]: run.record for run in runs if run.labels["seed"] == runs[0].labels["seed"]}


def at_chosen_rate(runs: Sequence[StudiedRun]) -> list[StudiedRun]:
    """A group's runs at its chosen learning rate."""
    factor = best_factor(tried_factors(runs))
    return [run for run in runs if run.labels["factor"] == factor]


def chosen_runs(study: Study) -> list[str]:
    """Names of the runs at the chosen learning rates that did not diverge."""
    chosen = [run for group in groups(study) for run in at_chosen_rate(group)]
    return [run.name for run in chosen if validation_loss(run.record) is not None]


def slices(record: Record, quality: str) -> dict[str, float]:
    """The whole test, under the empty name, and its slices."""
    whole = f"test/{quality}"
    measured = {key: value for key, value in record["test"].items() if value is not None}
    return {key[len(whole) + 1 :]: float(measured[key]) for key in measured if f"{key}/".startswith(f"{whole}/")}


def row(group: Sequence[StudiedRun]) -> Row:
    """What the runs of a group show."""
    tried, runs = sorted(tried_factors(group)), at_chosen_rate(group)
    factor = runs[0].labels["factor"] if runs else None
    ended = [run for run in runs if run.record.get("test")]
    quality = next((name for name in QUALITIES if ended and f"test/{name}" in ended[0].record["test"]), "loss")
    measured = [slices(run.record, quality) for run in ended]
    shared = [name for name in (measured[0] if measured else {}) if all(name in values for values in measured)]
    shown = [run.record for run in ended or runs or group]
    means = {key: statistics.fmean(record[key] for record in shown) for key in ("tokens", "flops", "seconds")}
    labels = group[0].labels
    return Row(
        **{name: labels[name] for name in (*LABELS, "unit")},
        factor=factor,
        at_edge=factor is not None and len(tried) > 1 and factor in (tried[0], tried[-1]),
        seeds=[run.labels["seed"] for run in ended],
        diverged=len(runs) - len(ended),
        parameters=shown[0]["parameters"],
        **means,
        quality=quality,
        values={name: [values[name] for values in measured] for name in shared},
    )


def comparison_rows(study: Study) -> list[Row]:
    """All rows, in the order of the plan, each with its difference from the first model's."""
    rows = [row(group) for group in groups(study)]
    baselines = {other.setting: other for other in rows if other.model == rows[0].model}
    return [replace(ours, difference=difference(ours, baselines.get(ours.setting))) for ours in rows]


def difference(ours: Row, theirs: Row | None) -> Interval | None:
    """The difference of the whole test, paired by seed."""
    if theirs is None or theirs is ours or ours.quality != theirs.quality:
        return None
    return paired_difference(ours.by_seed(), theirs.by_seed())
