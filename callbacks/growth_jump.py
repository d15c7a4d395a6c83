"""What growth itself costs: bits per character of the same validation batches just before and just after it.

Two validations, however near, have training steps between them. Here the same weights are measured, first without and
then with the new parameter tokens, before the optimizer makes its next step.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks import Growth
from callbacks.throughput import find_throughput
from models.growth import GrowableModel
from models.metrics import IGNORED


class JumpAtGrowth(L.Callback):
    """Adds `bits_per_char_before` and `bits_per_char_after` to each growth event; must stand before Growth.

    Args:
        num_batches: Batches of the validation split, its first ones.
    """

    def __init__(self, num_batches: int = 16) -> None:
        self.num_batches = num_batches
        self._before: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the model that is about to grow."""
        steps = [step for c in trainer.callbacks if isinstance(c, Growth) for step in c.steps]  # type: ignore[attr-defined]
        if trainer.global_step not in steps or batch_idx % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, GrowableModel)
        if all(event["step"] != trainer.global_step for event in pl_module.growth_events):
            self._before = self._measure(trainer, pl_module)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Measure the model that has grown; its weights are changed only after this."""
        if self._before is None:
            return
        assert isinstance(pl_module, GrowableModel)
        after = self._measure(trainer, pl_module)
        pl_module.growth_events[-1] |= {"bits_per_char_before": self._before, "bits_per_char_after": after}
        self._before = None

    def _measure(self, trainer: L.Trainer, pl_module: GrowableModel) -> float:
        """Bits per character, the same in every process; the clock of the training stands still meanwhile."""
        clock = find_throughput(trainer)
        clock.on_validation_start(trainer, pl_module)
        value = bits_per_char(pl_module, trainer.datamodule, self.num_batches)  # type: ignore[attr-defined]
        clock.on_train_batch_start(trainer, pl_module, None, 0)
        return value


@torch.no_grad()
def bits_per_char(model: GrowableModel, data: Any, num_batches: int) -> float:
    """Bits per character of the first batches of the validation split."""
    stream, training = data.eval_streams("validate")[0], model.training
    nats, characters = 0.0, 0
    model.eval()
    for number in range(min(num_batches, len(stream))):
        inputs_BT, targets_BT = stream.read(rank=0, world_size=1, number=number)
        scored = int((targets_BT != IGNORED).sum())
        nats += scored * float(model.loss((inputs_BT.to(model.device), targets_BT.to(model.device))))
        characters += scored
    model.train(training)
    return nats / characters / math.log(2)
