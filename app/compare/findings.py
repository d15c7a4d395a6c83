"""What a comparison shows: for each model, task, width and budget the quality at the learning rate that was chosen.

The learning rate is that of least validation loss at the end of the first seed's runs; the test is only ever reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.output.intervals import Interval, t_interval
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


def compared_groups(study: Study) -> list[tuple[Any, ...]]:
    """What is compared, in the order of the plan."""
    return list(dict.fromkeys(tuple(run.labels[name] for name in LABELS) for run in study.plan))


def at_chosen_rate(runs: Sequence[StudiedRun]) -> tuple[list[StudiedRun], float | None, list[float]]:
    """A group's runs at its chosen learning rate, that rate, and all that the first seed tried."""
    if not runs:
        return [], None, []
    tried = {run.labels["factor"]: run.record for run in runs if run.labels["seed"] == runs[0].labels["seed"]}
    factor = best_factor(tried)
    return [run for run in runs if run.labels["factor"] == factor], factor, sorted(tried)


def chosen_runs(study: Study) -> list[str]:
    """Names of the runs at the chosen learning rates that did not diverge."""
    done = (study.runs(**dict(zip(LABELS, group, strict=True))) for group in compared_groups(study))
    found = [run for runs in done for run in at_chosen_rate(runs)[0]]
    return [run.name for run in found if validation_loss(run.record) is not None]


def slices(record: Record, quality: str) -> dict[str, float]:
    """The whole test, under the empty name, and its slices."""
    prefix = f"test/{quality}"
    found = {key.removeprefix(prefix).removeprefix("/"): value for key, value in record.get("test", {}).items()
             if key == prefix or key.startswith(f"{prefix}/")}  # fmt: skip
    return {name: float(value) for name, value in found.items() if value is not None}


def row(study: Study, group: Sequence[Any]) -> Row | None:
    """What a group shows; None if none of its runs is done."""
    done = study.runs(**dict(zip(LABELS, group, strict=True)))
    runs, factor, tried = at_chosen_rate(done)
    if not done:
        return None
    ended = [run for run in runs if run.record.get("test")]
    tests = [run.record["test"] for run in ended]
    quality = next((name for name in QUALITIES if tests and f"test/{name}" in tests[0]), "loss")
    measured = [slices(run.record, quality) for run in ended]
    values = {name: [one[name] for one in measured] for name in (measured[0] if measured else {})
              if all(name in one for one in measured)}  # fmt: skip
    shown = [run.record for run in ended or runs or done]
    means = {key: statistics.fmean(record[key] for record in shown) for key in ("tokens", "flops", "seconds")}
    at_edge = factor is not None and len(tried) > 1 and factor in (tried[0], tried[-1])
    return Row(
        *group, done[0].labels["unit"], factor, at_edge, [run.labels["seed"] for run in ended],
        len(runs) - len(ended), shown[0]["parameters"], means["tokens"], means["flops"], means["seconds"],
        quality, values,
    )  # fmt: skip


def paired(ours: Row, theirs: Row | None) -> Interval | None:
    """The difference of the whole test, over the seeds that both have."""
    if theirs is None or theirs is ours or ours.quality != theirs.quality:
        return None
    mine, other = (dict(zip(one.seeds, one.values.get("", []), strict=False)) for one in (ours, theirs))
    seeds = sorted(mine.keys() & other.keys())
    return t_interval([mine[seed] - other[seed] for seed in seeds]) if seeds else None


def comparison_rows(study: Study) -> list[Row]:
    """All rows, in the order of the plan, each with its difference from the first model's."""
    rows = [found for group in compared_groups(study) if (found := row(study, group))]
    first = rows[0].model if rows else ""
    against = {(one.task, one.d_model, one.budget): one for one in rows if one.model == first}
    return [
        Row(**(vars(one) | {"difference": paired(one, against.get((one.task, one.d_model, one.budget)))}))
        for one in rows
    ]
