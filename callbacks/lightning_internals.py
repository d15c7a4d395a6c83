"""The private names of Lightning that the project needs, each behind a name of ours that says what it gives.

Another version of Lightning may lack them or mean something else by them: the tests of this file say so in words.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy


def completes_step(trainer: L.Trainer) -> bool:
    """Whether the batch that is ending completed an optimizer step, and no accumulation is under way."""
    return not trainer.fit_loop._should_accumulate()


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates right after the batch that is ending."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def use_run_folder(trainer: L.Trainer, folder: Path) -> None:
    """Let `trainer.default_root_dir` be this folder, on which the processes agree after the trainer was built."""
    trainer._default_root_dir = str(folder)


class ProgressBar(RichProgressBar):
    """Lightning's bar, without its count of epochs: runs are counted in steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training  "  # as long as "Validation"


class FSDP2(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes; checkpoints are single whole files."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Let every process read its own part of the data: Lightning's default would be tensor parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
