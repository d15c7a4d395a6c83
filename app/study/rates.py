"""Which of several learning rates was best, and whether it stands at an end of those that were tried.

The same answer for every study: validation loss at the end of runs that differ in nothing else. A run that counts says
in its label `search` how its rate was chosen: how many were tried, and at which end of them it stands, if at one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.study.study import Record, StudiedRun

RUNG, SEARCH = "rung", "search"  # labels: of runs that only choose; of those that count, how they were chosen
CHOSEN_APART = {"trial", RUNG, SEARCH}  # labels of studies in which no run that counts chooses


@dataclass(frozen=True)
class Rates:
    """Learning rates, as multiples of a recipe's.

    Attributes:
        tried: All of them, ascending.
        best: That of the least validation loss; None if all diverged.
    """

    tried: list[float]
    best: float | None

    @property
    def edge(self) -> str:
        """At which end of those tried the best lies, "low" or "high"; empty if at none, or there is but one."""
        if self.best is None or len(self.tried) < 2:
            return ""
        return {self.tried[0]: "low", self.tried[-1]: "high"}.get(self.best, "")

    def plain(self) -> dict[str, Any]:
        """As the label `search` has it."""
        return {"rates": len(self.tried), "edge": self.edge}


def validation_loss(record: Record | None) -> float | None:
    """At the end of a run; None if it diverged."""
    if not record or record["status"] != "finished":
        return None
    value = record["final"].get("val/loss")
    return None if value is None else float(value)


def rates_of(runs: Sequence[StudiedRun]) -> Rates:
    """What runs say that differ in their learning rate only, one a rate."""
    losses = {run.labels["factor"]: validation_loss(run.record) for run in runs}
    ended = {factor: loss for factor, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return Rates(sorted(losses), min(ended, key=ended.__getitem__, default=None))


def at_chosen_rate(runs: Sequence[StudiedRun]) -> list[StudiedRun]:
    """All runs; of an older study, whose first seed tried all learning rates, those at the best of these."""
    if any(CHOSEN_APART & run.labels.keys() for run in runs):
        return list(runs)
    rates = rates_of([run for run in runs if run.labels["seed"] == runs[0].labels["seed"]])
    chosen = runs if rates.best is None else [run for run in runs if run.labels["factor"] == rates.best]
    labels = {"factor": rates.best, SEARCH: rates.plain() | {"first_seed": True}}
    return [replace(run, labels=run.labels | labels) for run in chosen]
