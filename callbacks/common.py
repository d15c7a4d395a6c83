"""When the observing callbacks look, how far a fit goes, and what they know of its data and loggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from callbacks.lightning_internals import completes_step


def at_logging_step(trainer: L.Trainer) -> bool:
    """Whether the batch that ends completes an optimizer step that Lightning logs: the time to read from the device."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0 and completes_step(trainer)


def may_wait(trainer: L.Trainer) -> bool:
    """Whether to ask the device as a batch ends, which waits until all steps are done: where that costs nothing.

    Nothing is waited for on a CPU, and at logging steps metrics are fetched anyway.
    """
    is_cpu = trainer.strategy.root_device.type == "cpu"
    return is_cpu or not trainer.log_every_n_steps or at_logging_step(trainer)  # type: ignore[attr-defined]


def may_agree(trainer: L.Trainer) -> bool:
    """Whether the processes are to agree on something as a batch ends, which they do through their devices."""
    return trainer.world_size == 1 or may_wait(trainer)


def logged_step(trainer: L.Trainer) -> int:
    """Where loggers place what belongs to the last optimizer step: Lightning counts them from 0.

    A run that goes on after N steps discards all that is placed at N and later, and nothing else.
    """
    return max(0, trainer.global_step - 1)


def in_fit_validation(trainer: L.Trainer) -> bool:
    """Whether a validation belongs to a fit and is no sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def total_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole fit, by --trainer.max_steps or max_epochs; 0 if it has no end."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < float("inf") else 0


def tensorboard_of(trainer: L.Trainer) -> TensorBoardLogger | None:
    """The TensorBoard logger among those of the trainer, if there is one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def other_loggers(trainer: L.Trainer) -> list[Logger]:
    """The trainer's loggers but those of TensorBoard."""
    return [logger for logger in trainer.loggers if not isinstance(logger, TensorBoardLogger)]


def text_loggers(trainer: L.Trainer) -> list[TensorBoardLogger | WandbLogger]:
    """The trainer's loggers that take a text."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]


def log_text(trainer: L.Trainer, tag: str, text: str, step: int, *, verbatim: bool = False) -> None:
    """Give a text to the loggers that take one: TensorBoard, whose texts are Markdown, and W&B, as a table.

    Args:
        trainer: Whose loggers.
        tag: Name of the text.
        text: In Markdown, unless it is verbatim.
        step: Its place.
        verbatim: Whether line breaks and signs are to be shown as they are.
    """
    markdown = "\n".join(f"    {line}" for line in text.splitlines()) if verbatim else text
    for logger in text_loggers(trainer):
        if isinstance(logger, WandbLogger):
            logger.log_text(tag, columns=["step", "text"], data=[[str(step), text]])
        else:
            logger.experiment.add_text(tag, markdown, step)


@runtime_checkable
class DescribedData(Protocol):
    """A DataModule that tells what its task is, in plain values."""

    description: dict[str, Any]


@runtime_checkable
class JudgedData(Protocol):
    """A DataModule that tells what its task is judged by, and what chance gives."""

    chance: dict[str, float]


@runtime_checkable
class TextData(Protocol):
    """A DataModule whose tokens are characters."""

    vocabulary: str

    def encode(self, text: str) -> list[int]:
        """Characters -> tokens; ValueError names those that the vocabulary lacks."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens -> characters."""


def description_of(trainer: L.Trainer) -> dict[str, Any]:
    """What the trainer's DataModule says of its task; nothing if there is none, or it says nothing."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.description if isinstance(data, DescribedData) else {}


def chance_of(trainer: L.Trainer) -> dict[str, float]:
    """The metric that judges the DataModule's task, at chance; nothing if there is none, or it says nothing."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.chance if isinstance(data, JudgedData) else {}


def text_of(trainer: L.Trainer) -> TextData | None:
    """The trainer's DataModule, if its tokens are characters."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, TextData) else None


def split_measured(trainer: L.Trainer, stage: str) -> dict[str, int]:
    """How many batches of its split stage "validate" or "test" measures, and `of` how many: fewer are a part."""
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    return {"batches": sum(map(int, batches)), "of": sum(map(len, loaders))}
