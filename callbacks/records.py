"""The record of a run: one JSON file from which every report is made, so that nobody reads logs.

It holds the configuration, seed, versions, sizes, tokens, FLOPs, seconds, the losses by step, the lineage of growth
and the final metrics, and is written whole or not at all: at the start, after each validation, and however the run
ends.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.checkpoints import RunStopped, save_atomically
from callbacks.console import say, under
from callbacks.throughput import find_throughput
from models.base import LanguageModel

FORMAT = 1
MAX_TRAINING_POINTS = 500


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; ValueError says what is wrong with the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a record: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is not a record of format {FORMAT}")
    return record


def plain(values: Any) -> dict[str, Any]:
    """Hyper-parameters without Lightning's own entries, as JSON has them."""
    return {name: value for name, value in dict(values).items() if not name.startswith("_")}


def describe(trainer: L.Trainer, pl_module: LanguageModel) -> dict[str, Any]:
    """What the run is: nothing in it changes as the run goes on."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    device = pl_module.device
    return {
        "format": FORMAT,
        "command": sys.argv,
        "model": type(pl_module).__name__,
        "model_options": plain(pl_module.hparams),
        "data": type(data).__name__,
        "data_options": getattr(data, "description", {}),
        "optim": asdict(pl_module.optim),
        "seed": pl_module.seed,
        "max_steps": trainer.max_steps,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "lightning": L.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


class Record(L.Callback):
    """Keeps record.json in the run folder, and logs the hyper-parameters with the final quality to TensorBoard."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    @staticmethod
    def path(trainer: L.Trainer) -> Path:
        """The record's file."""
        return Path(trainer.default_root_dir) / "record.json"

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the record, or go on with that of the run that is resumed."""
        assert isinstance(pl_module, LanguageModel)
        history = [point for point in self._earlier(trainer) if point["step"] <= trainer.global_step]
        self.record = describe(trainer, pl_module) | {"history": history}
        self._write(trainer, pl_module, "running")

    def _earlier(self, trainer: L.Trainer) -> list[dict[str, Any]]:
        path = self.path(trainer)
        if not path.exists() or not trainer.global_step:
            return []
        try:
            return list(read_record(path)["history"])
        except ValueError as error:
            path.replace(path.with_suffix(".json.damaged"))
            say(f"{error}; it was renamed to {path.name}.damaged and a new one begun")
            return []

    def _point(self, trainer: L.Trainer, pl_module: LanguageModel, prefix: str) -> dict[str, Any]:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        return self._progress(trainer, pl_module) | values

    @staticmethod
    def _progress(trainer: L.Trainer, pl_module: LanguageModel) -> dict[str, Any]:
        return {
            "step": trainer.global_step,
            "tokens": pl_module.tokens_seen,
            "flops": pl_module.flops_spent,
            "seconds": round(find_throughput(trainer).seconds, 3),
            "parameters": pl_module.num_parameters(),
        }

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A point of the training loss, at most `MAX_TRAINING_POINTS` in a run."""
        assert isinstance(pl_module, LanguageModel)
        every = max(trainer.log_every_n_steps, -(-trainer.max_steps // MAX_TRAINING_POINTS))  # type: ignore[attr-defined]
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole and trainer.global_step % every == 0 and "train/loss" in trainer.callback_metrics:
            self.record["history"].append(self._point(trainer, pl_module, "train/"))

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A point of the validation's results."""
        assert isinstance(pl_module, LanguageModel)
        if self.record and trainer.state.fn == "fit":
            self.record["history"].append(self._point(trainer, pl_module, "val/"))
            self._write(trainer, pl_module, "running")

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a whole run."""
        self._end(trainer, pl_module, "finished")

    @rank_zero_only
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The end of a run that was stopped or failed."""
        stopped = isinstance(exception, RunStopped | KeyboardInterrupt)
        self._end(trainer, pl_module, "interrupted" if stopped else f"failed: {exception}")

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, status: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        if self.record:
            self._write(trainer, pl_module, status)
            self._log_hyper_parameters(trainer)

    def _write(self, trainer: L.Trainer, pl_module: LanguageModel, status: str) -> None:
        validations = [point for point in self.record["history"] if any(key.startswith("val/") for key in point)]
        self.record |= self._progress(trainer, pl_module) | {
            "status": status,
            "model_options": plain(pl_module.hparams),
            "growth_events": getattr(pl_module, "growth_events", []),
            "final": validations[-1] if validations else {},
        }
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        text = json.dumps(self.record, indent=1, default=str)
        save_atomically(lambda temporary: temporary.write_text(text, encoding="utf-8"), self.path(trainer))

    def _log_hyper_parameters(self, trainer: L.Trainer) -> None:
        """hp/* once a run, with the final validation as the metric, so that runs can be compared in the HParams tab."""
        quality = {f"hp/{name}": value for name, value in under(self.record["final"], "val").items() if "/" not in name}
        if not isinstance(trainer.logger, TensorBoardLogger) or not quality:
            return
        options = {f"model.{k}": v for k, v in self.record["model_options"].items()}
        options |= {f"data.{k}": v for k, v in self.record["data_options"].items()}
        options |= {f"optim.{k}": v for k, v in self.record["optim"].items()}
        columns = {"model": self.record["model"], "seed": self.record["seed"], "parameters": self.record["parameters"]}
        scalars = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in (columns | options).items()}
        trainer.logger.log_hyperparams(scalars, quality)

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the test's results to the record of the run folder, if there is one."""
        if self.path(trainer).exists():
            self.record = read_record(self.path(trainer))
            self.record["test"] = {key: float(value) for key, value in trainer.callback_metrics.items()}
            self._save(trainer)
