"""Runs as points of a scaling law: size, tokens, FLOPs and loss, all of one task.

Only a finished run that kept its size is a point: before its schedule has ended, a loss says little of the size, and
a grown run has no one size. Nor is a run shorter than ten warm-ups, whose loss is that of the warm-up, which longer
runs hardly have: such runs bend L(D) and move every optimum. Losses of different texts, vocabularies or windows do not
share an axis.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from app.study.gather import CHECK, RATE_AT_END, RATES, Gathered
from app.study.study import StudiedRun

WARM_UPS = 10  # that a point's steps have room for
LOSSES = re.compile(r"(val|test)/(loss|bits_per_char)(/.+)?")
NOT_THE_TASK = {
    "batch_size", "data_dir", "num_workers", "seed", "samples_per_epoch", "num_val_samples", "num_test_samples",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One run: its size, what was spent on it, and its loss by the metric.

    Attributes:
        run, model, seed: Which run it is.
        parameters, tokens, flops: N, D and C.
        loss: By the metric.
        steps: Optimizer steps.
        options: The model's options but for the vocabulary, which say what its size comes from.
        momentum_warmup: Steps in which Muon's momentum rises; 0 without.
        epoch: Tokens in one pass over the training text; None where a task draws ever new ones.
        rates: Learning rates tried in its place, as far as is known.
        rate_at_end: Whether its own is the least or the greatest of them; None where not known.
        task: Folder of the experiment file in a comparison; empty for other runs.
        num_layers: Layers that the comparison gave it; None for those of its file.
    """

    run: str
    model: str
    seed: int | None
    parameters: int
    tokens: int
    flops: float
    loss: float
    steps: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    momentum_warmup: int = 0
    epoch: float | None = None
    rates: int = 1
    rate_at_end: bool | None = None
    task: str = ""
    num_layers: int | None = None


class Collected(NamedTuple):
    """Points to fit and points to hold beside the fits, the runs that they are, and a line for each run that is none.

    The runs shorter than ten warm-ups have one line together.
    """

    points: list[Point]
    checks: list[Point]
    runs: list[StudiedRun]
    skipped: list[str]


def check_metric(metric: str) -> None:
    """ValueError unless the metric is a loss of validation or test."""
    if not LOSSES.fullmatch(metric):
        raise ValueError(
            f"--metric {metric} is no loss; name one of the record's, such as val/bits_per_char, val/loss or test/loss"
        )


def point_of(run: StudiedRun, metric: str) -> Point:
    """The run as a point; ValueError says in one line why it is none."""
    record = run.record
    if record.get("status") != "finished":
        raise ValueError(f"{run.name}: not finished ({record.get('status', 'unknown')})")
    if record.get("growth_events"):
        raise ValueError(f"{run.name}: it grew, so its loss is not that of one size")
    measured = record.get("final" if metric.startswith("val/") else "test") or {}
    if metric not in measured:
        known = ", ".join(sorted(key for key in measured if LOSSES.fullmatch(key))) or "no other either"
        raise ValueError(f"{run.name}: no {metric} in its record ({known})")
    sizes = {key: measured.get(key, record.get(key)) for key in ("parameters", "tokens", "flops")}
    for key, value in {metric: measured[metric], **sizes}.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{run.name}: {key} is {value}, not a number above 0")
    optim, labels = record.get("optim", {}), run.labels
    return Point(
        run.name,
        str(record.get("model")),
        record.get("seed"),
        loss=float(measured[metric]),
        **sizes,
        steps=steps_of(run),
        options={name: value for name, value in record.get("model_options", {}).items() if name != "vocab_size"},
        momentum_warmup=optim.get("momentum_warmup_steps", 0) if optim.get("optimizer") == "muon" else 0,
        epoch=epoch_of(record.get("data_options", {})),
        rates=labels.get(RATES, 1),
        rate_at_end=labels.get(RATE_AT_END),
        task=labels.get("task", "") if "d_model" in labels else "",
        num_layers=labels.get("num_layers"),
    )


def steps_of(run: StudiedRun) -> int:
    """Optimizer steps at the end of a run."""
    return int(run.record.get("final", {}).get("step") or run.record.get("step") or 0)


def warmup_of(run: StudiedRun) -> int:
    """Steps in which a run's learning rate rises."""
    return int(run.record.get("optim", {}).get("warmup_steps") or 0)


def epoch_of(data_options: Mapping[str, Any]) -> float | None:
    """Characters of the training split; None for a task without a text."""
    characters, split = data_options.get("characters"), data_options.get("split")
    return characters * int(split.partition("/")[0]) / 100 if characters and split else None


def refusal(short: Sequence[StudiedRun]) -> str:
    """How many runs are shorter than ten warm-ups, and which, in one line."""

    def kind(run: StudiedRun) -> tuple[str, int]:
        return str(run.record.get("model")), warmup_of(run)

    which = []
    for (model, warmup), group in groupby(sorted(short, key=kind), kind):
        steps = sorted(map(steps_of, group))
        numbers = ", ".join(map(str, dict.fromkeys(steps)))
        which.append(f"{model} {len(steps)} (of {numbers} steps, fewer than {WARM_UPS} x {warmup})")
    return f"{len(short)} runs shorter than {WARM_UPS} warm-ups, which are no points: {'; '.join(which)}"


def task_of(run: StudiedRun, metric: str) -> dict[str, Any]:
    """What must be the same for losses to share an axis, by option."""
    other_split = "test_" if metric.startswith("val/") else "val_"
    options = {
        f"--data.{key}": value
        for key, value in run.record.get("data_options", {}).items()
        if key not in NOT_THE_TASK and not key.startswith(other_split)
    }
    vocab_size = run.record.get("model_options", {}).get("vocab_size")
    return {"--data": run.record.get("data"), **options, "--model.vocab_size": vocab_size}


def check_task(runs: Sequence[StudiedRun], metric: str) -> None:
    """ValueError names two runs of different tasks, in what they differ, and the way out."""
    tasks = {run.name: task_of(run, metric) for run in runs}
    first = next(iter(tasks), "")
    for name, task in tasks.items():
        for option in tasks[first] | task:
            ours, theirs = tasks[first].get(option), task.get(option)
            if ours != theirs:
                odd = sum(task.get(option) != ours for task in tasks.values())
                raise ValueError(
                    f"RUNS are of different tasks, whose losses do not share an axis: {option} is {ours} in {first} "
                    f"and {theirs} in {name} ({odd} of {len(tasks)} runs differ); name the runs of one task only"
                )


def identity(run: StudiedRun) -> str:
    """Equal for the same run found twice, as in its folder and in a study's file."""
    names = ("model", "model_options", "seed", "optim", "tokens", "flops", "seconds", "final", "test")
    return json.dumps([run.record.get(name) for name in names], sort_keys=True)


def collect(gathered: Gathered, metric: str) -> Collected:
    """The points among the runs; ValueError for runs of different tasks."""
    used: dict[str, StudiedRun] = {}
    points: list[Point] = []
    checks: list[Point] = []
    kept: list[StudiedRun] = []
    short: list[StudiedRun] = []
    skipped = list(gathered.skipped)
    for run in gathered.runs:
        try:
            point = point_of(run, metric)
        except ValueError as error:
            skipped.append(str(error))
            continue
        if (same := used.setdefault(identity(run), run)) is not run:
            skipped.append(f"{run.name}: the same run as {same.name}")
            continue
        if steps_of(run) < WARM_UPS * warmup_of(run):
            short.append(run)
            continue
        kept.append(run)
        (checks if run.labels.get(CHECK) else points).append(point)
    models = {point.model for point in points}
    skipped += [f"{run.run}: no law of {run.model} to check" for run in checks if run.model not in models]
    if short:
        skipped.append(refusal(short))
    check_task(kept, metric)
    return Collected(points, checks, kept, skipped)
