"""The private names of Lightning that the project needs, each behind a name of ours that says what it gives.

Another version of Lightning may lack them or mean something else by them: the tests of this file say so in words.

The two loops differ from Lightning's in what a run needs that can be stopped anywhere: nothing is measured in the
middle of an accumulation, and a fit that has nothing left to train still begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script


class BatchLoop(_TrainingEpochLoop):
    """Lightning's loop over batches, validating between optimizer steps only."""

    decided_on = -1  # number of the batch that the decision is of
    decision = False
    is_postponed = False
    after_batch: Callable[[], None]

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on a batch; loggers' steps are counted as in a run that was never interrupted."""
        self._batches_that_stepped = self.global_step  # one too few where a run goes on after some validations
        super().advance(data_fetcher)
        self.call_after_batch()

    def _broadcast_sigterm_tensor(self) -> None:
        """Ask nobody, which would wait for all devices before each batch: signals are answered by Checkpoints."""

    def call_after_batch(self) -> None:
        """Let a checkpoint be made in the state of on_train_batch_end, which resumes at an epoch's end, too."""
        counts = (self.batch_progress.total, self.batch_progress.current)
        for count in counts:
            count.completed -= 1
        try:
            self.after_batch()
        finally:
            for count in counts:
                count.completed += 1

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        """Decide once a batch, as a limit of time may pass between two questions."""
        if self.decided_on != self.total_batch_idx:
            self.decided_on = self.total_batch_idx
            is_due = self.is_postponed or super()._should_check_val_fx(data_fetcher)
            self.is_postponed = is_due and self._should_accumulate()
            self.decision = is_due and not self.is_postponed
        return self.decision


class FitLoop(_FitLoop):
    """Lightning's outer loop, for which a fit with nothing left to train is a fit: what comes after is still done."""

    @property
    def skip(self) -> bool:
        """Whether not even to begin."""
        return bool(self.trainer.limit_train_batches == 0)


def use_our_loops(trainer: L.Trainer, after_batch: Callable[[], None]) -> None:
    """Let the trainer's loops, which are built and connected already, behave as ours.

    Args:
        trainer: Whose loops.
        after_batch: Called when all is done and logged that belongs to a batch, but for a validation that follows.
    """
    trainer.fit_loop.__class__ = FitLoop
    trainer.fit_loop.epoch_loop.__class__ = BatchLoop
    trainer.fit_loop.epoch_loop.after_batch = after_batch


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep the trainer from answering signals, which it would do by a collective operation in the middle of a step."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def watch_launched_by(watch: Callable[[list[Popen[bytes]]], None]) -> None:
    """Let `watch` take the place of what looks after launched processes, and kills all, this one too, without a word.

    It is called with the processes that the first one of a run launches to train with it, and returns at once.
    """
    subprocess_script._launch_process_observer = watch


def completes_step(trainer: L.Trainer) -> bool:
    """Whether the batch that is ending completed an optimizer step, and no accumulation is under way."""
    return not trainer.fit_loop._should_accumulate()


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates right after the batch that is ending."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def fit_is_ending(trainer: L.Trainer) -> bool:
    """Whether no batch follows the one that is ending: all steps are made, or a callback stopped the fit and may."""
    is_stopped = trainer.should_stop and trainer.fit_loop._can_stop_early
    return is_stopped or 0 < trainer.max_steps <= trainer.global_step


def use_run_folder(trainer: L.Trainer, folder: Path) -> None:
    """Let `trainer.default_root_dir` be this folder, on which the processes agree after the trainer was built."""
    trainer._default_root_dir = str(folder)


class ProgressBar(RichProgressBar):
    """Lightning's bar, without its count of epochs: runs are counted in steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training  "  # as long as "Validation"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the whole run, as the training stream has no end."""
        limit, batches = self.trainer.max_steps, self.trainer.num_training_batches
        return min(batches, limit * self.trainer.accumulate_grad_batches) if limit > 0 else batches


class DataParallelSharding(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes; checkpoints are single whole files."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Let every process read its own part of the data: Lightning's default would be tensor parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
