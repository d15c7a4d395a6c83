"""Checkpoints that survive: written whole or not at all, at moments from which a resumed run is the same run.

Between two optimizer steps, never in the middle of an accumulation, comes in this order what is due there: the
validation; `best.ckpt`, if its loss is the least so far; `last.ckpt`, which knows that loss, every so many steps, at
the end however the run ends, and when it is told to stop (Ctrl-C, SIGTERM). A loss, gradient or weight that is not
finite stops the run before anything is measured or saved over the last good checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks.atomic import save_atomically
from callbacks.common import in_fit_validation, may_agree, may_wait
from callbacks.console import tell
from callbacks.lightning_internals import (
    completes_step,
    fit_is_ending,
    leave_signals_alone,
    use_our_loops,
    validation_is_due,
)
from callbacks.record_file import CHECKPOINTS, best_checkpoint, last_checkpoint

MONITOR = "val/loss"
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
    """The loss, a gradient or a weight became NaN or infinite."""


class Checkpoints(Checkpoint):
    """Saves last.ckpt and best.ckpt, stops on signals, refuses to go on from a loss that is not finite.

    Args:
        every_n_steps: Optimizer steps between two saves of last.ckpt.
    """

    def __init__(self, every_n_steps: int = 250) -> None:
        if every_n_steps < 1:
            raise ValueError(f"--checkpoints.every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self._signum = 0
        self._handlers: dict[int, Any] = {}
        self._best_score = math.inf
        self._last_saved = -1  # step of last.ckpt, if this process knows it
        self._wants_end = False
        self._bad_step: Tensor | None = None

    @staticmethod
    def directory(run_dir: Path | str) -> Path:
        """Where a run keeps its checkpoints."""
        return Path(run_dir) / CHECKPOINTS

    def _last(self, trainer: L.Trainer) -> Path:
        return last_checkpoint(Path(trainer.default_root_dir))

    # Signals -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let a fit validate between optimizer steps only, and begin and end even if no step is left."""
        leave_signals_alone(trainer)
        if stage == "fit":
            use_our_loops(trainer, lambda: self._after_batch(trainer, pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, remove half-written files, and look what is in the folder."""
        if trainer.is_global_zero:
            for leftover in self.directory(trainer.default_root_dir).glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        last, best = self._last(trainer), best_checkpoint(Path(trainer.default_root_dir))
        resumed = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == last.resolve()
        self._last_saved = trainer.global_step if resumed else -1
        if not trainer.strategy.broadcast(best.exists()):  # a score whose model is not here is no score to beat
            self._best_score = math.inf
        self._wants_end = any(stopped_early(callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self._wants_end:
            tell("EarlyStopping has ended this run already; --trainer.callbacks null lets it go on")
        trainer.should_stop |= self._wants_end
        if trainer.fast_dev_run:
            return
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
            sys.exit(128 + signum)
        self._signum = signum
        tell("stopping after this step, with a checkpoint; once more stops at once, without")

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
            raise self._not_finite(trainer, f"the loss or a gradient is not finite at step {step}")

    def _check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise NonFiniteLossError if anything that led here, or a weight or buffer itself, is not finite."""
        self._check_finite(trainer)
        if not trainer.strategy.reduce_boolean_decision(all_finite(pl_module)):
            raise self._not_finite(trainer, f"a weight is not finite after step {trainer.global_step}")

    def _not_finite(self, trainer: L.Trainer, what: str) -> NonFiniteLossError:
        last = self._last(trainer)
        rest = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint before it"
        return NonFiniteLossError(
            f"{what}; {rest}. Try a lower --optim.learning_rate, a longer --optim.warmup_steps or "
            "--trainer.gradient_clip_val 1"
        )

    # Saving --------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the loss; let an accumulation be finished before the fit ends."""
        self._watch(trainer, outputs["loss"])
        if may_wait(trainer):
            self._check_finite(trainer)
        self._wants_end |= trainer.should_stop
        trainer.should_stop = self._wants_end and completes_step(trainer)

    def _after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between optimizer steps save and stop where due, unless a validation comes first."""
        if completes_step(trainer) and not validation_is_due(trainer):
            self._save_or_stop(trainer, pl_module, self._stop_signal(trainer) if may_agree(trainer) else 0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure nothing that is not finite, when the validation belongs to a fit."""
        if in_fit_validation(trainer):
            self._check_weights(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best, then save and stop where due, when the validation belongs to a fit."""
        if not in_fit_validation(trainer):
            return
        score = float(trainer.callback_metrics.get(MONITOR, math.nan))
        if trainer.strategy.reduce_boolean_decision(score < self._best_score):
            self._best_score = score
            self._save(trainer, pl_module, best_checkpoint(Path(trainer.default_root_dir)))
        self._save_or_stop(trainer, pl_module, self._stop_signal(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save an end that nothing announced, that of a loader's last epoch; tell which model is the best."""
        self._save_last(trainer, pl_module)
        best = best_checkpoint(Path(trainer.default_root_dir))
        if trainer.is_global_zero and not trainer.fast_dev_run and (score := best_score(best)) is not None:
            tell(f"best {MONITOR} {score:.4f}: {os.path.relpath(best)}")

    def _save_or_stop(self, trainer: L.Trainer, pl_module: L.LightningModule, signum: int) -> None:
        if signum or fit_is_ending(trainer) or trainer.global_step % self.every_n_steps == 0:
            self._save_last(trainer, pl_module)
        if signum:
            raise RunStopped(signum, self._last(trainer))

    def _save_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._last_saved:
            self._save(trainer, pl_module, self._last(trainer))
            self._last_saved = trainer.global_step

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, path: Path) -> None:
        if not trainer.fast_dev_run:
            self._check_weights(trainer, pl_module)
            trainer.save_checkpoint(path)

    def state_dict(self) -> dict[str, Any]:
        """The least validation loss so far."""
        return {"best_score": self._best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back; checkpoints of older versions do not have it."""
        self._best_score = state_dict.get("best_score", math.inf)


def all_finite(module: L.LightningModule) -> bool:
    """Whether no number among the parameters and buffers, or this process's part of them, is NaN or infinite."""
    tensors = (*module.parameters(), *module.buffers())
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    checks = [torch.isfinite(tensor).all() for tensor in local if tensor.is_floating_point()]
    return bool(torch.stack(checks).all())


def stopped_early(callback: L.Callback) -> bool:
    """Whether the callback is an EarlyStopping that has ended the run."""
    return isinstance(callback, EarlyStopping) and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED


def best_score(path: Path) -> float | None:
    """The validation loss of the model in a best.ckpt; None if there is no file that tells."""
    if not path.is_file():
        return None
    callbacks = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
    return callbacks.get(Checkpoints.__qualname__, {}).get("best_score")
