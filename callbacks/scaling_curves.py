"""Loss and quality against tokens, FLOPs, parameters and seconds, beside TensorBoard's curves against steps.

The horizontal axis is an event's step, an int64: tokens, millions of FLOPs (up to 9e24 FLOPs, and a toy's steps are
told apart), parameters, and milliseconds of training. Each axis has its own folder of events (`by_tokens`, ...),
because a resumed run discards what an interrupted one wrote beyond its checkpoint, and TensorBoard discards by the axis
of the folder. So curves go on without a gap or a repeat. Tokens and FLOPs are those of all processes; the first one
writes.

Against parameters there is a point for each size: the last validation before a growth, and that of the end. Growth is
a mark in the curves over the other axes: an upright stroke from the curve, at the place of the event.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.tensorboard import SummaryWriter

from callbacks.common import at_logging_step, in_fit_validation, tensorboard_of
from callbacks.throughput import find_throughput
from models.base import LanguageModel

MEGA = 10**6
AXES = {
    "tokens": "training tokens",
    "megaflops": "millions of training FLOPs",
    "parameters": "parameters",
    "milliseconds": "milliseconds of training",
}
CURVES = ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy")
CHARTS = {"bits per character": "val_bits_per_char", "loss in nats": "val_loss", "accuracy": "val_accuracy"}
STROKE = 0.05  # length of a mark, as a part of the value it stands on
# Foot, tip, foot: places behind the event's, where a run that goes on just before the growth discards them, and height
# over the curve. Not at one place, where TensorBoard would draw one point.
STROKE_POINTS = ((1, 0.0), (2, STROKE), (3, 0.0))
LAYOUT = {
    f"Scaling: {title}": {
        f"{title} against {unit}": ["Multiline", [f"scaling/{curve}_by_{axis}$", f"scaling/growth_{curve}_by_{axis}$"]]
        for axis, unit in AXES.items()
    }
    for title, curve in CHARTS.items()
} | {
    "Learning": {"loss": ["Multiline", ["train/loss$", "val/loss$"]], "accuracy": ["Multiline", ["val/accuracy$"]]},
    "Optimisation": {
        "learning rate": ["Multiline", ["train/learning_rate"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "Growth": {
        "parameter tokens": ["Multiline", ["growth/num_param_tokens", "growth/num_ffn_param_tokens"]],
        "layers": ["Multiline", ["growth/num_layers"]],
    },
    "Speed": {"tokens a second": ["Multiline", ["perf/tokens_per_second"]]},
}
ABOUT = """How to read this dashboard.

- **Custom Scalars** puts all runs on common axes: bits per character, loss or accuracy of the validation split against
training tokens, millions of training FLOPs, parameters and milliseconds of training (validation is not counted). An
upright stroke of a `growth_` curve is a growth of the model. Against parameters there is one point a size.
- **Time Series** and **Scalars** have the same as `scaling/*`, in the runs `by_tokens`, `by_megaflops`,
`by_parameters` and `by_milliseconds`, whose horizontal axis, called step, is in that unit; and everything against
optimizer steps: `train/*`, `val/*` (whole split, then slice by slice), `perf/*`, `growth/*`.
- **Text** has what the model writes (`samples/text`, after each validation) and a line for each growth.
- **HParams** compares runs: size, tokens, FLOPs, seconds and the last validation (`hp/*`) beside model, width, seed ...

Lower is better for losses (nats a token) and bits per character, higher for accuracy.
"""


class ScalingCurves(L.Callback):
    """Writes scaling/<metric>_by_<axis> for all axes, marks of growth, one custom-scalar layout, and how to read it."""

    def __init__(self) -> None:
        self._writers: dict[str, SummaryWriter] = {}
        self._last: dict[str, Any] = {}  # parameters and values of the last validation
        self._marked = 0  # growth events that are in the curves

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open an event folder for each axis, cut off where this run goes on."""
        assert isinstance(pl_module, LanguageModel)
        events = pl_module.growth_events
        self._marked = sum(event["tokens"] < pl_module.tokens_seen for event in events)
        if not (trainer.is_global_zero and (tensorboard := tensorboard_of(trainer))):
            return
        resumed, log_dir = trainer.global_step > 0, Path(tensorboard.log_dir)
        if not (log_dir / "by_tokens").exists():
            tensorboard.experiment.add_custom_scalars(LAYOUT)
            tensorboard.experiment.add_text("about", ABOUT)
        purge = {axis: place + 1 for axis, place in self._place(trainer, pl_module).items()}
        grown_on_disk = self._marked < len(events)
        purge["parameters"] = self._last.get("parameters", 0) if grown_on_disk else purge["parameters"] - 1
        for axis, place in purge.items():
            self._writers[axis] = SummaryWriter(log_dir / f"by_{axis}", purge_step=place if resumed else None)

    @staticmethod
    def _place(trainer: L.Trainer, pl_module: LanguageModel) -> dict[str, int]:
        return {
            "tokens": pl_module.tokens_seen,
            "megaflops": round(pl_module.flops_spent / MEGA),
            "parameters": pl_module.num_parameters(),
            "milliseconds": round(1000 * find_throughput(trainer).seconds),
        }

    def _write(self, values: dict[str, float], place: dict[str, int], kind: str = "") -> None:
        for axis, at in place.items() if self._writers else ():
            for name, value in values.items():
                self._writers[axis].add_scalar(f"scaling/{kind}{name.replace('/', '_')}_by_{axis}", value, at)

    @staticmethod
    def _measured(trainer: L.Trainer, prefix: str) -> dict[str, float]:
        known = trainer.callback_metrics
        return {name: float(known[name]) for name in CURVES if name.startswith(prefix) and name in known}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The training loss, at logging steps; growth, when it has happened."""
        assert isinstance(pl_module, LanguageModel)
        events = pl_module.growth_events
        for event in events[self._marked :]:
            self._mark(trainer, event, find_throughput(trainer).read(pl_module.device))
        self._marked = len(events)
        if at_logging_step(trainer):
            place = self._place(trainer, pl_module)
            self._write(
                self._measured(trainer, "train/"), {axis: place[axis] for axis in place.keys() - {"parameters"}}
            )

    def _mark(self, trainer: L.Trainer, event: dict[str, Any], seconds: float) -> None:
        """A stroke from each curve of the validation, or from that of the loss if nothing was validated yet."""
        values = self._last.get("values") or {
            name.replace("train", "val"): value for name, value in self._measured(trainer, "train/").items()
        }
        place = {
            "tokens": event["tokens"],
            "megaflops": round(event["flops"] / MEGA),
            "milliseconds": round(1000 * seconds),
        }
        for places_behind, height in STROKE_POINTS:
            stroke = {name: (1 + height) * value for name, value in values.items()}
            self._write(stroke, {axis: at + places_behind for axis, at in place.items()}, "growth_")
        if self._last:
            self._write(self._last["values"], {"parameters": self._last["parameters"]})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation's results."""
        assert isinstance(pl_module, LanguageModel)
        if not in_fit_validation(trainer):
            return
        place, values = self._place(trainer, pl_module), self._measured(trainer, "val/")
        self._last = {"parameters": place.pop("parameters"), "values": values}
        self._write(values, place)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The point of the last size."""
        assert isinstance(pl_module, LanguageModel)
        if self._last.get("parameters") == pl_module.num_parameters():
            self._write(self._last["values"], {"parameters": self._last["parameters"]})

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
