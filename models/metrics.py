"""Metrics over scored positions, summed over batches and processes before they are divided.

Bits per character is the mean negative log-likelihood in nats divided by ln 2. Sums, not means of means, make it
right for uneven last batches and under DDP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

IGNORED = -100  # target of a position that is not scored
METRICS = ("bits_per_char", "accuracy", "exact_match", "free_running_exact_match")


def scored_positions(targets_BT: Tensor, num_scored: int | None = None) -> Tensor:
    """Where targets (B, T), row by row, are scored: indices (N,), ascending, into the B T positions.

    Whoever knows N, their number, spares the device from being asked, which would have to be waited for.
    """
    scored_P = (targets_BT != IGNORED).flatten()
    scored_N1 = scored_P.nonzero() if num_scored is None else scored_P.nonzero_static(size=num_scored)
    return scored_N1.squeeze(1)


class CrossEntropy(Metric):
    """Mean negative log-likelihood of the scored positions, in nats."""

    full_state_update = False
    nats: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_NV: Tensor, targets_N: Tensor) -> None:
        """Add N scored positions."""
        self.nats += F.cross_entropy(logits_NV.float(), targets_N, reduction="sum").double()
        self.count += targets_N.numel()

    def compute(self) -> Tensor:
        """Nats a position."""
        return (self.nats / self.count).float()


class BitsPerChar(CrossEntropy):
    """Mean negative log-likelihood of the scored positions, in bits (nats / ln 2)."""

    def compute(self) -> Tensor:
        """Bits a position."""
        return super().compute() / math.log(2)


class ExactMatch(Metric):
    """Part of the rows of which every scored position is right."""

    full_state_update = False
    matched: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("matched", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions_BT: Tensor, targets_BT: Tensor) -> None:
        """Add B rows; a row without scored positions does not count."""
        scored_BT = targets_BT != IGNORED
        right_B = ((predictions_BT == targets_BT) | ~scored_BT).all(1)
        counts_B = scored_BT.any(1)
        self.matched += (right_B & counts_B).sum()
        self.rows += counts_B.sum()

    def compute(self) -> Tensor:
        """Part between 0 and 1."""
        return self.matched / self.rows


@dataclass(frozen=True)
class Evaluation:
    """How a split is measured.

    Attributes:
        metrics: Names of `METRICS`, beside the loss, which is always measured.
        slices: Names of the split's loaders, in order; where there are none, loaders are numbered.
        headline: Names of the slices whose mean stands for the whole; where there are none, all.
    """

    metrics: Sequence[str] = ("bits_per_char", "accuracy")
    slices: Sequence[str] = ()
    headline: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise ValueError naming what is unknown."""
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"no such metric: {name}; choose among {', '.join(METRICS)}")
        for name in self.headline:
            if name not in self.slices:
                raise ValueError(f"no such slice for the headline: {name}; choose among {', '.join(self.slices)}")

    def slice_names(self, num_loaders: int) -> list[str]:
        """The names of so many loaders; ValueError if others are named."""
        names = list(self.slices) or [str(number) for number in range(num_loaders)]
        if len(names) != num_loaders:
            raise ValueError(f"the slices {', '.join(names)} name {len(names)} loaders, and there are {num_loaders}")
        return names


@runtime_checkable
class SaysEvaluation(Protocol):
    """A DataModule that says how its splits are measured."""

    def evaluation(self, stage: str) -> Mapping[str, Any]:
        """The arguments of `Evaluation` for stage "validate" or "test"."""


def evaluation_of(data: Any, stage: str) -> Evaluation:
    """How a stage is measured: as the DataModule says, or by the defaults if it says nothing or there is none."""
    return Evaluation(**data.evaluation(stage)) if isinstance(data, SaysEvaluation) else Evaluation()


class EvalMetrics:
    """What one slice of a split is measured by: the loss, and `names` of `METRICS`."""

    def __init__(self, names: Sequence[str], vocab_size: int, device: torch.device) -> None:
        self.metrics: dict[str, Metric] = {"loss": CrossEntropy()}
        if "bits_per_char" in names:
            self.metrics["bits_per_char"] = BitsPerChar()
        if "accuracy" in names:
            self.metrics["accuracy"] = MulticlassAccuracy(vocab_size, average="micro", validate_args=False)
        for name in ("exact_match", "free_running_exact_match"):
            if name in names:
                self.metrics[name] = ExactMatch()
        for metric in self.metrics.values():
            metric.to(device)

    def update(
        self, logits_NV: Tensor, targets_BT: Tensor, scored_N: Tensor, free_running_BT: Tensor | None = None
    ) -> None:
        """Add a batch: the logits of its N >= 0 scored positions, all its targets, and where they are scored."""
        targets_P, predictions_N = targets_BT.flatten(), logits_NV.argmax(-1)
        targets_N = targets_P[scored_N]
        predictions_BT = targets_P.index_copy(0, scored_N, predictions_N).view_as(targets_BT)
        for name, metric in self.metrics.items():
            if name == "accuracy":
                metric.update(predictions_N, targets_N)
            elif name == "exact_match":
                metric.update(predictions_BT, targets_BT)
            elif name == "free_running_exact_match":
                if free_running_BT is not None:
                    metric.update(free_running_BT, targets_BT)
            else:
                metric.update(logits_NV, targets_N)

    def compute(self) -> dict[str, float]:
        """The values by name, over all processes; a metric that saw nothing is left out."""
        return {name: float(metric.compute()) for name, metric in self.metrics.items() if metric.update_called}
