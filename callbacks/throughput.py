"""Tokens a second and seconds a step, over the time that training itself takes.

The clock stands still during validation, so that the seconds of a run add up to what its tokens cost; it is read at
logging steps only, where metrics are fetched from the device anyway.
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from callbacks.common import at_logging_step
from models.base import LanguageModel


class Throughput(L.Callback):
    """Logs perf/tokens_per_second (all processes) and perf/seconds_per_step; `seconds` adds up over resumes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens_per_second = 0.0
        self._mark: float | None = None
        self._window = (0, 0, 0.0)  # tokens, step and seconds when the logged window began

    def read(self, device: torch.device) -> float:
        """Seconds until now."""
        if self._mark is not None:
            self._lap(device)
        return self.seconds

    def _lap(self, device: torch.device | None = None) -> None:
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)  # steps that are still queued belong to the time before
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds += now - self._mark
        self._mark = now

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the first window."""
        assert isinstance(pl_module, LanguageModel)
        self._mark = None
        self._window = (pl_module.tokens_seen, trainer.global_step, self.seconds)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the clock run."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the window that ends at a logging step."""
        assert isinstance(pl_module, LanguageModel)
        tokens, step, seconds = self._window
        if not at_logging_step(trainer):
            return
        self._lap(pl_module.device)
        elapsed = max(self.seconds - seconds, 1e-9)  # a clock of coarse ticks may not have moved
        self.tokens_per_second = (pl_module.tokens_seen - tokens) / elapsed
        self.log("perf/tokens_per_second", self.tokens_per_second)
        self.log("perf/seconds_per_step", elapsed / (trainer.global_step - step))
        self._window = (pl_module.tokens_seen, trainer.global_step, self.seconds)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.read(pl_module.device)
        self._mark = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what is left."""
        self.on_validation_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        if self._mark is not None:
            self._lap()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding."""
        self.seconds = state_dict["seconds"]


def find_throughput(trainer: L.Trainer) -> Throughput:
    """The trainer's Throughput, or a fresh one that has measured nothing."""
    found = (callback for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
    return next(found, None) or Throughput()
