"""The record of a run: one JSON file from which every report is made, so that nobody reads logs.

It holds the configuration, seed, versions, sizes, tokens, FLOPs, seconds, the losses by step, the lineage of growth
and the final metrics, and is written whole or not at all: at the start, after each validation, and however the run
ends.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.atomic import write_json
from callbacks.checkpoints import RunStopped
from callbacks.common import (
    at_logging_step,
    chance_of,
    description_of,
    in_fit_validation,
    other_loggers,
    split_measured,
    tensorboard_of,
    total_steps,
)
from callbacks.console import tell, under
from callbacks.dashboard import log_options
from callbacks.growth import Growth
from callbacks.record_file import FORMAT, RECORD, read_record
from callbacks.throughput import find_throughput
from models.base import LanguageModel

MAX_TRAINING_POINTS = 500
OPTIONS = (  # of a record, beside its groups
    "model", "data", "seed", "max_steps", "processes", "precision", "matmul_precision",
)  # fmt: skip
INTERRUPTIONS = (RunStopped, KeyboardInterrupt, SystemExit)  # Lightning's SIGTERMException is a SystemExit
ROOT = Path(__file__).resolve().parent.parent


def read_or_set_aside(path: Path) -> dict[str, Any]:
    """The record at `path`, empty if there is none; a damaged one is renamed, with a line that says so."""
    if not path.exists():
        return {}
    try:
        return read_record(path)
    except ValueError as error:
        path.replace(path.with_suffix(".json.damaged"))
        tell(f"{error}; it was renamed to {path.name}.damaged")
        return {}


def git_commit() -> str | None:
    """Hash of the checkout's commit, ending in -dirty where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def plain(values: Any) -> dict[str, Any]:
    """Hyper-parameters without Lightning's own entries, as JSON has them."""
    return {name: value for name, value in dict(values).items() if not name.startswith("_")}


def describe(trainer: L.Trainer, pl_module: LanguageModel, command: Sequence[str]) -> dict[str, Any]:
    """What the run is: nothing in it changes as the run goes on."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    device = pl_module.device
    return {
        "format": FORMAT,
        "command": list(command),
        "model": type(pl_module).__name__,
        "model_options": plain(pl_module.hparams),
        "data": type(data).__name__,
        "data_options": description_of(trainer),
        "chance": chance_of(trainer),
        "optim": asdict(pl_module.optim),
        "seed": pl_module.seed,
        "max_steps": total_steps(trainer),
        "versions": {
            "greenhouse": git_commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": L.__version__,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


class Record(L.Callback):
    """Keeps record.json in the run folder, and logs the options: to TensorBoard at the end, with the final quality.

    Args:
        command: Arguments of the command that is carried out, which the record tells.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self.command = command
        self.record: dict[str, Any] = {}  # of the fit that goes on, empty outside
        self._loaded_step = 0

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn of which step the checkpoint is."""
        self._loaded_step = checkpoint["global_step"]

    @staticmethod
    def path(trainer: L.Trainer) -> Path:
        """The record's file."""
        return Path(trainer.default_root_dir) / RECORD

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the record, or go on with that of the run that is resumed."""
        assert isinstance(pl_module, LanguageModel)
        if trainer.fast_dev_run:
            return
        earlier = read_or_set_aside(self.path(trainer)) if trainer.global_step else {}
        history = [point for point in earlier.get("history", []) if point["step"] <= trainer.global_step]
        logged = earlier.get("hparams_logged", False)
        measured = {split: part for split, part in earlier.get("measured", {}).items() if split == "val"}
        carried = {"history": history, "hparams_logged": logged, "measured": measured}
        self.record = describe(trainer, pl_module, self.command) | carried
        self._write(trainer, pl_module, "running")
        for logger in other_loggers(trainer):
            logger.log_hyperparams(self._options(trainer))

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
        """A point of the training loss, at most `MAX_TRAINING_POINTS` in a run; growth is written at once."""
        assert isinstance(pl_module, LanguageModel)
        if not self.record:
            return
        if at_logging_step(trainer) and trainer.global_step >= self._next_training_point():
            self.record["history"].append(self._point(trainer, pl_module, "train/"))
        if len(pl_module.growth_events) > len(self.record["growth_events"]):
            self._write(trainer, pl_module, "running")

    def _next_training_point(self) -> float:
        steps = (point["step"] for point in reversed(self.record["history"]) if "train/loss" in point)
        last = next(steps, 0)
        return float(last + max(self.record["max_steps"], last) / MAX_TRAINING_POINTS)  # ever sparser without an end

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A point of the validation's results."""
        assert isinstance(pl_module, LanguageModel)
        if self.record and in_fit_validation(trainer):
            self.record["history"].append(self._point(trainer, pl_module, "val/"))
            self.record["measured"] = {"val": split_measured(trainer, "validate")}
            self._write(trainer, pl_module, "running")

    @rank_zero_only
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What came before a checkpoint is on the disk before it: a run resumed from it does not measure that again."""
        assert isinstance(pl_module, LanguageModel)
        if self.record:
            self._write(trainer, pl_module, "running")

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a whole run."""
        self._end(trainer, pl_module, "finished")

    @rank_zero_only
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The end of a run that was stopped or failed."""
        message = " ".join(str(exception).split()) or type(exception).__name__
        stopped = isinstance(exception, INTERRUPTIONS)
        self._end(trainer, pl_module, "interrupted" if stopped else f"failed: {message}")

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, status: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        if self.record:
            self._write(trainer, pl_module, status)
            if not status.startswith("failed"):
                self._log_hyper_parameters(trainer)
            self.record = {}

    def _write(self, trainer: L.Trainer, pl_module: LanguageModel, status: str) -> None:
        validations = [point for point in self.record["history"] if any(key.startswith("val/") for key in point)]
        self.record |= self._progress(trainer, pl_module) | {
            "status": status,
            "model_options": plain(pl_module.hparams),
            "growth_events": list(pl_module.growth_events),
            "final": validations[-1] if validations else {},
        }
        self._save(trainer, self.record)

    def _save(self, trainer: L.Trainer, record: dict[str, Any]) -> None:
        write_json(self.path(trainer), record, indent=1)

    def _options(self, trainer: L.Trainer) -> dict[str, Any]:
        """Every option of the run in one dictionary, so that runs can be told by what differs among them."""
        options = self.record["data_options"] | self.record["model_options"] | self.record["optim"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Growth):
                options |= {f"growth.{name}": value for name, value in callback.options.items()}
        options |= {
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
        }
        return options | {name: self.record[name] for name in OPTIONS}

    def _log_hyper_parameters(self, trainer: L.Trainer) -> None:
        """For TensorBoard's HParams: the options, once a run folder; costs and quality as hp/*, each time."""
        quality = {f"hp/{name}": value for name, value in under(self.record["final"], "val").items() if "/" not in name}
        tensorboard = tensorboard_of(trainer)
        if not tensorboard or not quality:
            return
        quality |= {f"hp/{name}": float(self.record[name]) for name in ("parameters", "tokens", "flops", "seconds")}
        quality["hp/growths"] = float(len(self.record["growth_events"]))
        tensorboard.log_metrics(quality, trainer.global_step)
        if not self.record["hparams_logged"]:
            log_options(tensorboard, self._options(trainer))
            self.record["hparams_logged"] = True
            self._save(trainer, self.record)

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the test's results to the record of the run folder, if there is one."""
        if record := read_or_set_aside(self.path(trainer)):
            results = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
            path = trainer.ckpt_path  # None for weights that are in memory
            of = {"checkpoint": path and str(path), "step": self._loaded_step}
            measured = record.get("measured", {}) | {"test": split_measured(trainer, "test") | of}
            self._save(trainer, record | {"test": results, "measured": measured})
