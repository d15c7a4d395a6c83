"""What all tasks share: sample streams, the loader that resumes, the LightningDataModule.

A stream numbers samples; batch number p of the training stream, which has no end, holds samples p B ... (p + 1) B - 1
for global batch size B, and rank r reads the r-th contiguous part of them. So neither the number of processes nor what
was drawn before changes a batch.

A batch is (inputs, targets), int64 (B, T); targets are shifted already, and IGNORED where nothing is scored.

Shapes: B rows, T time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.randomness import Ints

Batch = tuple[Tensor, Tensor]

IGNORED = -100  # target of a position that is not scored


# Sample streams -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleStream:
    """Numbered samples in global batches.

    Attributes:
        name: The slice's name in metrics.
        generate: (batch number, sample indices (B,)) -> Batch; the number may decide the shape.
        num_samples: Samples in all, or in what is called an epoch of an endless stream.
        batch_size: Samples in a global batch, over all processes.
        endless: Whether indices go on beyond `num_samples` (training) or end there (evaluation).
    """

    name: str
    generate: Callable[[int, Ints], Batch]
    num_samples: int
    batch_size: int
    endless: bool = False

    def __len__(self) -> int:
        """Global batches in all, or in an epoch."""
        return -(-self.num_samples // self.batch_size)

    def read(self, rank: int, world_size: int, number: int) -> Batch:
        """One process's part of global batch `number`: the rank-th contiguous part.

        Where evaluation ends with rows that do not split evenly, parts are filled up with copies that are not scored:
        collectives need the same number of batches, of the same shapes, in every process.
        """
        first = number * self.batch_size
        rows = self.batch_size if self.endless else min(self.batch_size, self.num_samples - first)
        part = -(-rows // world_size)
        indices = first + rank * part + np.arange(part)
        stop = first + rows
        inputs_BT, targets_BT = self.generate(number, np.minimum(indices, stop - 1))
        targets_BT[torch.from_numpy(indices >= stop)] = IGNORED
        return inputs_BT, targets_BT


class _Numbered(Dataset[Batch]):
    """Batches by number, as a map for worker processes."""

    def __init__(self, read: Callable[[int], Batch]) -> None:
        self.read = read

    def __getitem__(self, number: int) -> Batch:
        return self.read(number)


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def deaf_to_stops() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in the processes that are started meanwhile; in this one they only wait.

    Both are sent to a whole group of processes, by a terminal or a cluster; but workers are to serve a run that is told
    to stop until it has saved. They end with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StreamLoader:
    """A stateful iterable over batches; every `iter` hands out `num_batches` of them, or has no end.

    An evaluation loader begins at batch 0 every time, a training loader goes on where it stopped. If `batches_done`
    brings the trainer's count of batches used, that count decides: Lightning restores it always, but a loader's state
    neither after a checkpoint between epochs nor when the optimizer's schedule asked for the number of steps; and it
    leaves out a batch whose step was interrupted. Without it the loader counts what it hands out.

    Only a loader without an end is one stream: at the end of an epoch Lightning ends an accumulation, whole or not, and
    worker processes are started anew.

    Not a torch DataLoader, as Lightning would replace its sampler; inside, one feeds worker processes.

    Args:
        read: Batch number -> this process's part of it.
        num_batches: Batches of an `iter`; None for no end.
        endless: Go on where the last `iter` stopped.
        num_workers: Processes that generate ahead; 0 generates in this one.
        batches_done: The trainer's count of batches used, over all epochs.
    """

    def __init__(
        self,
        read: Callable[[int], Batch],
        num_batches: int | None,
        *,
        endless: bool = False,
        num_workers: int = 0,
        batches_done: Callable[[], int] | None = None,
    ) -> None:
        self.read, self.num_batches = read, num_batches
        self.endless, self.num_workers = endless, num_workers
        self.batches_done = batches_done
        self._handed_out = 0

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("a stream without an end has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator: where to begin is asked at the first batch, when a resumed trainer has its counts back.
        first = self.position if self.endless else 0
        numbers = count(first) if self.num_batches is None else range(first, first + self.num_batches)
        for inputs_BT, targets_BT in self._batches(numbers):
            self._handed_out += 1
            yield inputs_BT, targets_BT

    def _batches(self, numbers: Iterable[int]) -> Iterable[Batch]:
        if self.num_workers == 0:
            return map(self.read, numbers)
        loader = DataLoader(
            _Numbered(self.read),
            batch_size=None,
            sampler=numbers,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
        )
        with deaf_to_stops():
            return iter(loader)

    @property
    def position(self) -> int:
        """Batches used over all epochs, which is the number of the next one in training."""
        return self.batches_done() if self.batches_done else self._handed_out

    def state_dict(self) -> dict[str, int]:
        """The position; batches that workers prefetched do not count."""
        return {"batches": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state["batches"]` batches; a trainer that counts has restored the same number itself."""
        self._handed_out = state["batches"]


# The LightningDataModule ----------------------------------------------------------------------------------------------


def check_at_least(minimum: int, **options: int) -> None:
    """Raise ValueError for the first option of --data below `minimum`."""
    for name, value in options.items():
        if value < minimum:
            raise ValueError(f"--data.{name} is {value}; it must be at least {minimum}")


class TaskData(L.LightningDataModule):
    """Loaders of a task that says what its streams are.

    A subclass sets `vocab_size`, calls `save_hyperparameters` and defines `train_stream` and `eval_streams`.

    Args:
        batch_size: Sequences in a batch, over all processes.
        num_workers: Processes that prepare batches ahead, per training process; 0 prepares them in it.
        seed: Seed of the data.
    """

    metrics: tuple[str, ...] = ("accuracy",)

    def __init__(self, *, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_stream(self) -> SampleStream:
        """The endless training stream."""
        raise TypeError(f"{type(self).__name__} defines no train_stream")

    def eval_streams(self, stage: str) -> list[SampleStream]:
        """One stream a slice, for stage "validate" or "test"."""
        raise TypeError(f"{type(self).__name__} defines no eval_streams")

    def check(self) -> None:
        """Raise ValueError if a stream cannot be drawn, as what the task reads is missing or too short."""
        self.train_stream()
        for stage in ("validate", "test"):
            self.eval_streams(stage)

    def slice_names(self, stage: str) -> list[str]:
        """Names of the loaders that val_dataloader ("validate") or test_dataloader ("test") returns, in order."""
        return [stream.name for stream in self.eval_streams(stage)]

    def headline(self, stage: str) -> list[str]:
        """Names of the slices whose mean stands for the whole: all, unless a task asks several questions."""
        return self.slice_names(stage)

    def evaluation(self, stage: str) -> dict[str, Any]:
        """How a stage is measured: by which metrics, over which slices, and by which of them the whole."""
        return {"metrics": self.metrics, "slices": self.slice_names(stage), "headline": self.headline(stage)}

    @property
    def description(self) -> dict[str, Any]:
        """What the task is, in plain values, for a run's record."""
        options = {name: value for name, value in self.hparams.items() if not name.startswith("_")}
        return {"task": type(self).__name__} | options

    @property
    def chance(self) -> dict[str, float]:
        """What the metric that judges the task is where nothing is known but how often each answer occurs.

        None has learned the task whose metric is no better; empty for a task that does not say.
        """
        return {}

    def train_dataloader(self) -> StreamLoader:
        """This process's part of the training stream."""
        if self.batch_size % self._world_size:
            raise ValueError(
                f"--data.batch_size {self.batch_size} does not split over {self._world_size} processes; "
                f"choose a multiple of {self._world_size}"
            )
        return self._loader(self.train_stream())

    def val_dataloader(self) -> list[StreamLoader]:
        """One loader a validation slice."""
        return [self._loader(stream) for stream in self.eval_streams("validate")]

    def test_dataloader(self) -> list[StreamLoader]:
        """One loader a test slice."""
        return [self._loader(stream) for stream in self.eval_streams("test")]

    def predict_dataloader(self) -> list[StreamLoader]:
        """The test loaders."""
        return self.test_dataloader()

    def rows_for(self, tokens: int, seq_len: int) -> int:
        """Rows of a global evaluation batch of about `tokens` tokens: long sequences come in smaller batches."""
        return max(1, tokens // (seq_len * self._world_size)) * self._world_size

    @property
    def _replica(self) -> dict[str, int]:
        # Lightning's own view: ranks that share a part of a model, not of the data, have the same one.
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return kwargs or {"num_replicas": 1, "rank": 0}

    @property
    def _world_size(self) -> int:
        return self._replica["num_replicas"]

    @property
    def _counts_no_epochs(self) -> bool:
        trainer = self.trainer
        return trainer is not None and trainer.max_epochs == -1 and trainer.check_val_every_n_epoch is None

    def _batches_done(self) -> int:
        trainer: Any = self.trainer
        if trainer.overfit_batches:  # the same few batches every epoch
            return 0
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def _loader(self, stream: SampleStream) -> StreamLoader:
        return StreamLoader(
            partial(stream.read, self._replica["rank"], self._world_size),
            None if stream.endless and self._counts_no_epochs else len(stream),
            endless=stream.endless,
            num_workers=self.num_workers,
            batches_done=self._batches_done if stream.endless and self.trainer else None,
        )
