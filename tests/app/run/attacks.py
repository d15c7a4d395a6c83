"""Callbacks that disturb a run at a chosen moment."""

import shutil
import signal
import time
from pathlib import Path

import lightning as L


class Kill(L.Callback):
    """Copies the run folder to FOLDER-killed at a moment: what a process killed there leaves on the disk."""

    def __init__(self, step: int, moment: str = "on_train_end") -> None:
        self.step, self.moment = step, moment

    def _copy(self, trainer, moment):
        if (trainer.global_step, moment) == (self.step, self.moment):
            folder = Path(trainer.default_root_dir)
            shutil.copytree(folder, f"{folder}-killed")

    def on_train_end(self, trainer, pl_module):
        self._copy(trainer, "on_train_end")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._copy(trainer, "on_train_batch_start")


class StopInValidation(L.Callback):
    """Sends SIGTERM to this process in the first validation after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step >= self.step:
            self.step = 10**9  # once: a second signal would stop without a checkpoint
            signal.raise_signal(signal.SIGTERM)


class Poison(L.Callback):
    """Makes a weight NaN after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.head.weight.data[0, 0] = float("nan")


class Hang(L.Callback):
    """Waits for signals at a moment, for ever, where any of them may be answered."""

    def __init__(self, moment: str = "on_train_batch_start") -> None:
        self.moment = moment

    def _hang(self, moment):
        if moment == self.moment:
            print("hangs", flush=True)
            while True:
                time.sleep(0.01)

    def setup(self, trainer, pl_module, stage):
        self._hang("setup")

    def on_fit_start(self, trainer, pl_module):
        self._hang("on_fit_start")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._hang("on_train_batch_start")
