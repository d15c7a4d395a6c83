"""Callbacks for the processes that test_distributed starts."""

import os
import signal
from pathlib import Path

import lightning as L
import torch


class SaveEachRank(L.Callback):
    """Saves what every process has at the end of training, to be compared."""

    def on_train_end(self, trainer, pl_module):
        state = {"model": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        torch.save(state, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


class StopOneRank(L.Callback):
    """Sends SIGTERM to the last process alone, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step - 1 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
