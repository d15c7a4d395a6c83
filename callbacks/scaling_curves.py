"""Loss and quality against tokens and against FLOPs, beside TensorBoard's curves against steps.

The horizontal axis is an event's step, an int64: tokens, or millions of FLOPs, which hold up to 9e24 FLOPs and resolve
a toy's steps. Each axis has its own folder of events (`by_tokens`, `by_megaflops`), because a resumed run discards what
an interrupted one wrote beyond its checkpoint, and TensorBoard discards by the axis of the folder. So curves go on
without a gap or a repeat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from callbacks.common import at_logging_step
from models.base import LanguageModel

MEGA = 10**6
CURVES = ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy")
LAYOUT = {
    "Learning": {"loss": ["Multiline", ["train/loss", "val/loss"]], "accuracy": ["Multiline", ["val/accuracy"]]},
    "Quality": {"bits per character": ["Multiline", ["val/bits_per_char"]]},
    "Optimisation": {
        "learning rate": ["Multiline", ["train/learning_rate"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "Growth": {"parameter tokens": ["Multiline", ["growth/num_param_tokens", "growth/num_ffn_param_tokens"]]},
    "Speed": {"tokens a second": ["Multiline", ["perf/tokens_per_second"]]},
}


class ScalingCurves(L.Callback):
    """Writes scaling/<metric>_by_tokens and scaling/<metric>_by_megaflops, and one custom-scalar layout."""

    def __init__(self) -> None:
        self._writers: dict[str, SummaryWriter] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open an event folder for each axis, cut off where this run goes on."""
        if not (trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)):
            return
        resumed, log_dir = trainer.global_step > 0, Path(trainer.logger.log_dir)
        if not (log_dir / "by_tokens").exists():
            trainer.logger.experiment.add_custom_scalars(LAYOUT)
        for axis, place in self._place(pl_module).items():
            self._writers[axis] = SummaryWriter(log_dir / f"by_{axis}", purge_step=place + 1 if resumed else None)

    @staticmethod
    def _place(pl_module: L.LightningModule) -> dict[str, int]:
        assert isinstance(pl_module, LanguageModel)
        return {"tokens": pl_module.tokens_seen, "megaflops": round(pl_module.flops_spent / MEGA)}

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> None:
        for axis, place in self._place(pl_module).items() if self._writers else ():
            for name in CURVES:
                if name.startswith(prefix) and name in trainer.callback_metrics:
                    tag = f"scaling/{name.replace('/', '_')}_by_{axis}"
                    self._writers[axis].add_scalar(tag, float(trainer.callback_metrics[name]), place)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The training loss, at logging steps."""
        if at_logging_step(trainer):
            self._write(trainer, pl_module, "train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation's results."""
        self._write(trainer, pl_module, "val/")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put on the disk what came before the checkpoint: a run resumed from it does not write that again."""
        for writer in self._writers.values():
            writer.flush()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the files; there is no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
