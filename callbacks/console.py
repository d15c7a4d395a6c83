"""What a person reads while a run goes on: what runs, on what, how far, how well, where the results are.

Plain lines through rich's own console, on the first process only: they come out above a progress bar and survive in a
pipe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich import get_console
from rich.console import Console
from rich.table import Table

from callbacks.common import (
    at_logging_step,
    description_of,
    in_fit_validation,
    split_measured,
    tensorboard_of,
    total_steps,
)
from callbacks.lightning_internals import ProgressBar
from callbacks.record_file import RECORD, best_checkpoint, last_checkpoint
from callbacks.throughput import find_throughput
from models.base import LanguageModel

PREFIXES = {"validate": "val", "test": "test"}  # of the metrics of a stage


@rank_zero_only
def say(text: str) -> None:
    """Print one line of the story, on the first process only."""
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)


@rank_zero_only
def tell(text: str) -> None:
    """Print one line of what is to be known in any case, a result or a warning, on the first process only."""
    heard().print(text, markup=False, highlight=False, soft_wrap=True)


def heard() -> Console:
    """Rich's own console, above whose bar lines come out; another one where that is quiet, as --quiet makes it."""
    return Console() if get_console().quiet else get_console()


def readable(value: float) -> str:
    """A count with three digits and k, M, G, T, P or E: 213248 -> '213 k'."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} E"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 3725 -> '1 h 2 min', 65 -> '1 min 5 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def under(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The metrics named `prefix`/…, without the prefix."""
    return {key.removeprefix(f"{prefix}/"): float(v) for key, v in metrics.items() if key.startswith(f"{prefix}/")}


def quality(metrics: Mapping[str, Any], prefix: str) -> str:
    """The metrics under `prefix` that have no slice, in words: 'loss 1.62, 2.34 bits/char, accuracy 0.5'."""
    words = {"bits_per_char": "{:.3f} bits/char", "loss": "loss {:.3f}"}
    named = {name: value for name, value in under(metrics, prefix).items() if "/" not in name}
    return ", ".join(words.get(name, name.replace("_", " ") + " {:.3f}").format(v) for name, v in named.items())


def table_of(metrics: Mapping[str, Any], prefix: str) -> Table:
    """Metrics as a table: a row for the whole and one for each slice, a column for each metric."""
    cells = {tuple(name.partition("/")[::2]): value for name, value in under(metrics, prefix).items()}
    columns = list(dict.fromkeys(name for name, _ in cells))
    table = Table(title=f"{prefix} split")
    for heading in ("slice", *(column.replace("_", " ") for column in columns)):
        table.add_column(heading, justify="right")
    for row in dict.fromkeys(slice_name for _, slice_name in cells):
        values = [f"{cells[column, row]:.4f}" if (column, row) in cells else "" for column in columns]
        table.add_row(row or "headline", *values)
    return table


class ModelSummary(RichModelSummary):
    """Lightning's table of modules, without the columns and sums that are empty here; the Narrator tells the size."""

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Print name, type and parameters of each module."""
        columns = {name: values for name, values in summary_data if name in ("Name", "Type", "Params")}
        table = Table(*columns)
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        get_console().print(table)


class Bar(ProgressBar):
    """The bar of steps, and beside them the losses; that of training is fetched from the device when it is logged."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"quiet": get_console().quiet})
        self._training: dict[str, float] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is logged with `prog_bar`, and the training loss of the last logging step."""
        if trainer.training and at_logging_step(trainer):
            logged = trainer.callback_metrics
            self._training = {name: float(logged[name]) for name in ("train/loss",) if name in logged}
        return self._training | super().get_metrics(trainer, pl_module)


def what_is_there(folder: Path) -> str:
    """What a run has left in its folder, in words."""
    files = (last_checkpoint(folder), best_checkpoint(folder), folder / RECORD)
    names = [str(path.relative_to(folder)) for path in files if path.is_file()]
    return f"{folder} has {', '.join(names) or 'neither checkpoint nor record'}"


class Narrator(L.Callback):
    """Tells the run's story in lines."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first_step = 0

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What runs, on what, on which data, where to."""
        assert isinstance(pl_module, LanguageModel)
        self._began, self._first_step = time.monotonic(), trainer.global_step
        name, size = type(pl_module).__name__, f"{pl_module.num_parameters():,}"
        devices = f"{trainer.world_size} x {pl_module.device.type.upper()} ({trainer.precision})"
        steps = f"{total_steps(trainer):,}" if total_steps(trainer) else "unlimited"
        say(f"{name}, {size} parameters, on {devices}, {steps} steps")
        if description := description_of(trainer):
            shown = (f"{key} {value}" for key, value in description.items() if key != "sha256" and value is not None)
            say("data: " + ", ".join(shown))
        say(f"run folder: {trainer.default_root_dir}")
        if trainer.global_step:
            say(f"resumed at step {trainer.global_step:,} ({readable(pl_module.tokens_seen)} tokens)")

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """How far and how well."""
        if not in_fit_validation(trainer):
            return
        assert isinstance(pl_module, LanguageModel)
        steps = max(1, trainer.global_step - self._first_step)
        total = total_steps(trainer)
        left = (time.monotonic() - self._began) / steps * (total - trainer.global_step)
        speed = find_throughput(trainer).tokens_per_second
        parts = [
            f"step {trainer.global_step:,}" + (f"/{total:,}" if total else ""),
            f"{readable(pl_module.tokens_seen)} tokens",
            f"{readable(pl_module.flops_spent)}FLOP",
            f"val {quality(trainer.callback_metrics, 'val')}",
            f"{readable(speed)} tokens/s" if speed else "",
            f"{duration(left)} left" if left > 0 else "",
        ]
        say(" | ".join(part for part in parts if part))

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where the results are."""
        folder = Path(trainer.default_root_dir)
        there = "nothing saved, as --trainer.fast_dev_run asks" if trainer.fast_dev_run else what_is_there(folder)
        say(f"done in {duration(time.monotonic() - self._began)}; {there}")
        if tensorboard_of(trainer) and not trainer.fast_dev_run:
            say(f"watch with `tensorboard --logdir {folder.parent}`")

    @rank_zero_only
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a validate run measures."""
        if trainer.state.fn == "validate":
            self._say_what_is_measured(trainer, "validate")

    @rank_zero_only
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a test run measures."""
        self._say_what_is_measured(trainer, "test")

    def _say_what_is_measured(self, trainer: L.Trainer, stage: str) -> None:
        measured, split = split_measured(trainer, stage), f"batches of the {PREFIXES[stage]} split"
        if measured["batches"] == measured["of"]:
            say(f"all {measured['of']:,} {split}")
        else:
            tell(f"{measured['batches']:,} of {measured['of']:,} {split}, a part of it")

    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The table of a validate or test run."""
        prefix = PREFIXES.get(str(trainer.state.fn.value if trainer.state.fn else ""))
        if prefix and trainer.callback_metrics:
            heard().print(table_of(trainer.callback_metrics, prefix))
