"""What `predict` writes: one JSON line a sequence, with inputs, targets and the likeliest tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.common import text_of
from callbacks.console import tell
from models.metrics import evaluation_of


def unfinished(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.tmp")


class Predictions(BasePredictionWriter):
    """Writes predictions.jsonl (one file a process, numbered, if there are several) into the run folder."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._file: IO[str] | None = None

    @staticmethod
    def path(trainer: L.Trainer) -> Path:
        """This process's file."""
        number = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        return Path(trainer.default_root_dir) / f"predictions{number}.jsonl"

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a temporary file."""
        path = self.path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = unfinished(path).open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's sequences, in text too where the data has characters."""
        assert self._file
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        text, names = text_of(trainer), evaluation_of(data, "test").slice_names(len(trainer.num_predict_batches))
        columns = {name: tensor.tolist() for name, tensor in prediction.items()}
        for values in zip(*columns.values(), strict=True):
            row = {"slice": names[dataloader_idx]} | dict(zip(columns, values, strict=True))
            if text:
                row["text"] = {name: text.decode(row[name]) for name in ("inputs", "predictions")}
            self._file.write(json.dumps(row) + "\n")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the file its name."""
        assert self._file
        self._file.close()
        path = self.path(trainer)
        unfinished(path).replace(path)
        tell(f"predictions in {path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no half-written file; there is no teardown then."""
        self.teardown(trainer, pl_module, "predict")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave no half-written file."""
        if self._file:
            self._file.close()
            unfinished(self.path(trainer)).unlink(missing_ok=True)
            self._file = None
