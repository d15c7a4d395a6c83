"""The limit of time of one call: `--trainer.max_time`."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from callbacks.common import may_agree
from callbacks.console import tell
from callbacks.lightning_internals import completes_step


class TimeLimit(L.Callback):
    """Ends a fit after an optimizer step when its time is over; a run that goes on has all of the time again.

    Args:
        duration: A timedelta, its arguments, or days, hours, minutes and seconds as "00:01:30:00".
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        self.duration = duration
        self.seconds = Timer(duration).time_remaining() or 0.0
        self._end = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the time run."""
        self._end = time.monotonic() + self.seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the fit, in all processes, when the time of the first one is over."""
        if completes_step(trainer) and may_agree(trainer) and trainer.strategy.broadcast(time.monotonic() >= self._end):
            trainer.should_stop = True
            tell(f"--trainer.max_time {self.duration} is over at step {trainer.global_step:,}")
