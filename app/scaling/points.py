"""Runs as points of a scaling law: size, tokens, FLOPs and loss, all of one task.

Only a finished run that kept its size is a point: before its schedule has ended, a loss says little of the size, and
a grown run has no one size. Losses of different texts, vocabularies or windows do not share an axis.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.study.gather import Gathered
from app.study.study import StudiedRun

LOSSES = re.compile(r"(val|test)/(loss|bits_per_char)(/.+)?")
NOT_THE_TASK = {
    "batch_size", "data_dir", "num_workers", "seed", "samples_per_epoch", "num_val_samples", "num_test_samples",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One run: its size, what was spent on it, and its loss by the metric."""

    run: str
    model: str
    seed: int | None
    parameters: int
    tokens: int
    flops: float
    loss: float


class Collected(NamedTuple):
    """Points with the runs that they are, and a line for each run that is none."""

    points: list[Point]
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
    return Point(run.name, str(record.get("model")), record.get("seed"), loss=float(measured[metric]), **sizes)


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
    points, skipped = [], list(gathered.skipped)
    for run in gathered.runs:
        try:
            point = point_of(run, metric)
        except ValueError as error:
            skipped.append(str(error))
            continue
        if (same := used.setdefault(identity(run), run)) is not run:
            skipped.append(f"{run.name}: the same run as {same.name}")
            continue
        points.append(point)
    check_task(list(used.values()), metric)
    return Collected(points, list(used.values()), skipped)
