"""What TensorBoard shows of a run: its logger, the unit of each tag, the charts that have all runs on common axes.

A run is one folder of events. A point's place, which TensorBoard calls its step, is an int64 in the unit that the tag
names: `by_tokens/val_loss` stands at tokens, `by_megaflops/` at millions of FLOPs (up to 9e24 FLOPs, and a toy's points
are told apart), `by_parameters/` and `by_milliseconds/` likewise, and all else at optimizer steps. Names are chosen so
that the curves are the first that is seen, as TensorBoard sorts tags and opens the first two groups. What HParams
shows of a run unasked, the first five tags, is how these curves ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from callbacks.event_files import EVENT_FILES, cut_off

STEPS = "steps"
AXES = {
    "tokens": "training tokens",
    "megaflops": "millions of training FLOPs",
    "parameters": "parameters",
    "milliseconds": "milliseconds of training",
}
UNIT = re.compile(rf"(?:growth_marks/)?by_({'|'.join(AXES)})/")
CHARTS = {"bits per character": "val_bits_per_char", "loss in nats": "val_loss", "accuracy": "val_accuracy"}
LAYOUT = {
    f"Scaling: {title}": {
        f"{title} against {unit}": ["Multiline", [f"^by_{axis}/{curve}$", f"^growth_marks/by_{axis}/{curve}/"]]
        for axis, unit in AXES.items()
    }
    for title, curve in CHARTS.items()
} | {
    "Learning": {"loss": ["Multiline", ["^train/loss$", "^val/loss$"]], "accuracy": ["Multiline", ["^val/accuracy$"]]},
    "Optimisation": {
        "learning rate": ["Multiline", ["^train/learning_rate$"]],
        "gradient norm": ["Multiline", ["^train/grad_norm$"]],
    },
    "Growth": {
        "parameter tokens": ["Multiline", ["^growth/num_param_tokens$", "^growth/num_ffn_param_tokens$"]],
        "layers": ["Multiline", ["^growth/num_layers$"]],
    },
    "Speed": {"tokens a second": ["Multiline", ["^perf/tokens_per_second$"]]},
}
ABOUT = """How to read this dashboard.

- **Time Series** opens on the loss and quality of the validation split against millions of training FLOPs and
milliseconds of training (validation is not counted), a colour a run; `by_tokens` and `by_parameters` are below, then
everything against optimizer steps: `train/*`, `val/*` (whole split, then slice by slice), `perf/*`, `growth/*`. The
horizontal axis, called step, is in the unit of the group. Smoothing is for `train/*`: set it to 0 for all else.
- **Custom Scalars** has the same curves, and on them a point for each growth of the model (`growth_marks/*`). Against
parameters there is one point a size.
- **Text** has what the model writes (`samples/text`, after each validation) and a line for each growth.
- **HParams** compares runs: the options that differ come first, beside size, tokens, FLOPs, seconds and the last
validation (`hp/*`).
- With more than 40 runs, all tabs but Time Series and HParams begin with none: filter them by a regular expression
above their list of runs.

Lower is better for losses (nats a token) and bits per character, higher for accuracy.
"""


class TensorBoard(TensorBoardLogger):
    """Lightning's logger without `epoch`, which says nothing of a stream without end and would be the first chart."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers at an optimizer step."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def unit_of(tag: str) -> str:
    """What the places of a tag's points count: one of `AXES`, or optimizer steps."""
    found = UNIT.match(tag)
    return found[1] if found else STEPS


def begin(logger: TensorBoardLogger, reached: Mapping[str, int] | None) -> None:
    """Cut off what lies beyond the places that a run has reached, and write what its folder lacks: how it is laid out.

    How to read it all stands in the oldest run of a folder of runs.

    Args:
        logger: Of the run, which has written nothing yet since it was made.
        reached: The last places of what is kept, by unit; None for a run that begins.
    """
    folder, writer = Path(logger.log_dir), logger.experiment
    tags = set() if reached is None else cut_off(folder, lambda tag, place: place <= reached[unit_of(tag)])
    if "custom_scalars__config__" not in tags:
        writer.add_custom_scalars(LAYOUT)
    if "about/text_summary" not in tags and is_oldest(folder):
        writer.add_text("about", ABOUT)


def is_oldest(folder: Path) -> bool:
    """Whether no run beside this one has events of the same second or of an earlier one, which their names tell."""
    seconds: dict[Path, list[int]] = {folder: []}
    for file in folder.parent.glob(f"*/{EVENT_FILES}"):
        seconds.setdefault(file.parent, []).append(int(file.name.split(".")[3]))
    own = min(seconds.pop(folder), default=0)
    return all(own < min(others) for others in seconds.values())


def log_options(logger: TensorBoardLogger, options: Mapping[str, Any]) -> None:
    """Write what HParams tells of a run.

    Lightning's and PyTorch's own also declare a table of these options, and TensorBoard takes the first run's for all.
    Without, it has the options of all runs, and shows first those that differ.
    """
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in options.items()
    }
    _, start, end = hparams(plain, {})
    for summary in (start, end):
        logger.experiment.file_writer.add_summary(summary)
