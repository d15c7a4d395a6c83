"""Loss and quality against tokens, FLOPs, parameters and time of training, beside the curves against steps.

TensorBoard gets a tag for each axis, `by_tokens/val_loss` (`callbacks.dashboard`); when a run is resumed, what an
interrupted one wrote beyond the checkpoint is cut off, so that curves go on without a gap or a repeat. Other loggers
get `curves/val_loss` in one row with `curves/tokens`, `curves/megaflops`, `curves/parameters` and
`curves/milliseconds`, of which they draw either against the other. Tokens and FLOPs are those of all processes; the
first one writes.

Against parameters there is a point for each size: the last validation before a growth, and that of the end. In the
curves over the other axes a growth is a point of its own tag, at the end of the first step of the grown model and at
the height of the last validation.
"""

from __future__ import annotations

from typing import Any

import lightning as L

from callbacks.common import at_logging_step, in_fit_validation, logged_step, other_loggers, tensorboard_of
from callbacks.dashboard import STEPS, begin
from callbacks.throughput import find_throughput
from models.base import LanguageModel

MEGA = 10**6
CURVES = ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy")


class ScalingCurves(L.Callback):
    """Writes by_<axis>/<metric> for all axes, marks of growth, one custom-scalar layout, and how to read it."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}  # parameters and values of the last validation
        self._marked = 0  # growth events that are in the curves

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the curves off where this run goes on."""
        assert isinstance(pl_module, LanguageModel)
        self._marked = sum(event["tokens"] < pl_module.tokens_seen for event in pl_module.growth_events)
        if trainer.is_global_zero and (tensorboard := tensorboard_of(trainer)):
            begin(tensorboard, self._reached(trainer, pl_module) if trainer.global_step else None)

    def _reached(self, trainer: L.Trainer, pl_module: LanguageModel) -> dict[str, int]:
        """The last place, by unit, of what was written before the checkpoint; the point of its size is still to come.

        A checkpoint that was grown on disk is of the size that was validated last.
        """
        place = self._place(trainer, pl_module)
        is_grown_on_disk = self._marked < len(pl_module.growth_events)
        size = self._last.get("parameters", 0) if is_grown_on_disk else place["parameters"]
        return place | {"parameters": size - 1, STEPS: logged_step(trainer)}

    @staticmethod
    def _place(trainer: L.Trainer, pl_module: LanguageModel) -> dict[str, int]:
        return {
            "tokens": pl_module.tokens_seen,
            "megaflops": round(pl_module.flops_spent / MEGA),
            "parameters": pl_module.num_parameters(),
            "milliseconds": round(1000 * find_throughput(trainer).seconds),
        }

    @staticmethod
    def _write(
        trainer: L.Trainer, values: dict[str, float], place: dict[str, int], group: str = "", end: str = ""
    ) -> None:
        if trainer.is_global_zero and (tensorboard := tensorboard_of(trainer)):
            for axis, at in place.items():
                for name, value in values.items():
                    tag = f"{group}by_{axis}/{name.replace('/', '_')}{end}"
                    tensorboard.experiment.add_scalar(tag, value, at)

    def _write_curves(self, trainer: L.Trainer, values: dict[str, float], place: dict[str, int]) -> None:
        """Points against what a run spends; other loggers learn its size, too."""
        self._write(trainer, values, {axis: at for axis, at in place.items() if axis != "parameters"})
        row = {f"curves/{name.replace('/', '_')}": value for name, value in values.items()}
        row |= {f"curves/{axis}": float(at) for axis, at in place.items()}
        for logger in other_loggers(trainer):
            logger.log_metrics(row, step=logged_step(trainer))

    @staticmethod
    def _measured(trainer: L.Trainer, prefix: str) -> dict[str, float]:
        known = trainer.callback_metrics
        return {name: float(known[name]) for name in CURVES if name.startswith(prefix) and name in known}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The training loss, at logging steps; growth, when it has happened."""
        assert isinstance(pl_module, LanguageModel)
        if self._marked < len(pl_module.growth_events):
            self._mark(trainer, pl_module)
        if at_logging_step(trainer):
            self._write_curves(trainer, self._measured(trainer, "train/"), self._place(trainer, pl_module))

    def _mark(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """A point on each curve of the validation, or on that of the loss if nothing was validated yet."""
        values = self._last.get("values") or {
            name.replace("train", "val"): value for name, value in self._measured(trainer, "train/").items()
        }
        if self._last:
            self._write(trainer, self._last["values"], {"parameters": self._last["parameters"]})
        find_throughput(trainer).read(pl_module.device)
        place = self._place(trainer, pl_module)
        del place["parameters"]
        while self._marked < len(pl_module.growth_events):
            self._marked += 1
            self._write(trainer, values, place, "growth_marks/", f"/{self._marked}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation's results."""
        assert isinstance(pl_module, LanguageModel)
        if not in_fit_validation(trainer):
            return
        place, values = self._place(trainer, pl_module), self._measured(trainer, "val/")
        self._last = {"parameters": place["parameters"], "values": values}
        self._write_curves(trainer, values, place)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The point of the last size."""
        assert isinstance(pl_module, LanguageModel)
        if self._last.get("parameters") == pl_module.num_parameters():
            self._write(trainer, self._last["values"], {"parameters": self._last["parameters"]})

    def state_dict(self) -> dict[str, Any]:
        """The last validation, for the growth that follows a resume."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._last = state_dict["last"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put on the disk what was logged before the checkpoint: a run resumed from it does not log that again."""
        for logger in trainer.loggers:
            logger.save()
