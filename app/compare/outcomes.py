"""What one run came to, from its record: whether it learned anything, and what a search sees of it."""

from __future__ import annotations

import math

from app.compare.search import Result
from app.study.rates import validation_loss
from app.study.study import Record

PERFECT = {"accuracy": 1.0, "bits_per_char": 0.0}
LEARNED = 0.02  # the part of the way from chance to perfect that is beyond doubt: more than noise, less than any skill


def has_learned(record: Record) -> bool | None:
    """Whether validation ended above chance: by a fiftieth of the way from there to perfect, at least.

    Validation asks what was trained. None if the record does not say what chance is, unless there is none so small.
    """
    if "chance" not in record and record["final"].get("val/accuracy", 1.0) < LEARNED:
        return False
    for metric, chance in record.get("chance", {}).items():
        value = record["final"].get(f"val/{metric}")
        if value is not None and metric in PERFECT:
            return bool((value - chance) / (PERFECT[metric] - chance) >= LEARNED)
    return None


def result(record: Record | None) -> Result | None:
    """What a search sees of a run; None if it is not done. Who does not say what chance is counts as having learned."""
    if record is None:
        return None
    loss = validation_loss(record)
    if loss is None or not math.isfinite(loss):
        return Result(False, math.inf)
    return Result(has_learned(record) is not False, loss)
