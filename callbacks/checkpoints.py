"""Checkpoints that survive: written whole or not at all, at moments from which a resumed run is the same run.

`last.ckpt` is saved every so many steps, at the end, and when the run is told to stop (Ctrl-C, SIGTERM); never in the
middle of a gradient accumulation, and after a validation that is due at the same step. A loss or gradient that is not
finite stops the run before anything is saved over the last good checkpoint.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from callbacks.atomic import save_atomically
from callbacks.common import at_logging_step, in_fit_validation
from callbacks.console import say
from callbacks.lightning_internals import validation_is_due
from callbacks.record_file import CHECKPOINTS, last_checkpoint

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their final name and renamed when they are on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint to `path`, whole or not at all; raises OSError."""
        save_atomically(lambda temporary: torch.save(checkpoint, temporary), Path(path))


class RunStopped(Exception):  # noqa: N818 - no error: the run was asked to stop
    """The run was stopped by the signal `signum` after saving `checkpoint`."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.checkpoint = signum, checkpoint


class NonFiniteLossError(ValueError):
    """The loss or a gradient became NaN or infinite."""


class Checkpoints(Checkpoint):
    """Saves last.ckpt, stops on signals, refuses to go on from a loss that is not finite.

    Args:
        every_n_steps: Optimizer steps between two saves of last.ckpt.
    """

    def __init__(self, every_n_steps: int = 250) -> None:
        if every_n_steps < 1:
            raise ValueError(f"--checkpoints.every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self._signum = 0
        self._handlers: dict[int, Any] = {}
        self._last_saved = -1
        self._bad_step: Tensor | None = None

    @staticmethod
    def directory(run_dir: Path | str) -> Path:
        """Where a run keeps its checkpoints."""
        return Path(run_dir) / CHECKPOINTS

    def _last(self, trainer: L.Trainer) -> Path:
        return last_checkpoint(Path(trainer.default_root_dir))

    # Signals -------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, from Lightning too, and remove what a killed process left half-written."""
        if trainer.is_global_zero:
            for leftover in self.directory(trainer.default_root_dir).glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        self._handlers = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; there is no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._signum:
            raise KeyboardInterrupt
        self._signum = signum
        say("stopping after this step, with a checkpoint; once more stops at once, without")

    def _stop_signal(self, trainer: L.Trainer) -> int:
        """The signal that any process has received, 0 for none; every process learns the same."""
        if trainer.world_size == 1:
            return self._signum
        number = torch.tensor(float(self._signum), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))

    # Losses that are not finite ------------------------------------------------------------------------------------

    def _watch(self, trainer: L.Trainer, loss: Tensor) -> None:
        """Remember, on the device, the first step whose loss or gradient is not finite."""
        norm = trainer.callback_metrics.get("train/grad_norm", loss)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = loss if scaled else loss + norm  # a loss scaler skips steps with infinite gradients
        bad = torch.where(torch.isfinite(watched), -1, trainer.global_step)
        self._bad_step = bad if self._bad_step is None else torch.where(self._bad_step >= 0, self._bad_step, bad)

    def _check_finite(self, trainer: L.Trainer) -> None:
        if self._bad_step is None:
            return
        step = int(trainer.strategy.reduce(self._bad_step.float(), reduce_op="max"))
        if step >= 0:
            last = self._last(trainer)
            rest = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint before it"
            raise NonFiniteLossError(
                f"the loss or a gradient is not finite at step {step}; {rest}. Try a lower --optim.learning_rate, "
                "a longer --optim.warmup_steps or --trainer.gradient_clip_val 1"
            )

    # Saving --------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the loss; save and stop where due, unless a validation comes first."""
        self._watch(trainer, outputs["loss"])
        if pl_module.device.type == "cpu" or at_logging_step(trainer):
            self._check_finite(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not validation_is_due(trainer):
            self._save_or_stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save and stop where due, when the validation belongs to a fit."""
        if in_fit_validation(trainer):
            self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: L.Trainer) -> None:
        signum = self._stop_signal(trainer)
        finished = 0 < trainer.max_steps <= trainer.global_step
        due = trainer.global_step - max(self._last_saved, 0) >= self.every_n_steps
        if (due or finished or signum) and trainer.global_step != self._last_saved:
            self._check_finite(trainer)
            self._last_saved = trainer.global_step
            trainer.save_checkpoint(self._last(trainer))
        if signum:
            raise RunStopped(signum, self._last(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The step of the newest save."""
        return {"last_saved": self._last_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from the newest save."""
        self._last_saved = state_dict["last_saved"]
