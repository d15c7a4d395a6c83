"""TensorBoard's events of what is no run: reports and their figures. Loads PyTorch when they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from app.output.figures import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def new_events(folder: Path) -> Iterator[SummaryWriter]:
    """A writer whose events take the place of those in the folder when all are written."""
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".events", dir=folder) as temporary:
        with closing(SummaryWriter(temporary)) as writer:
            yield writer
        before = list(folder.glob("events.out.tfevents.*"))
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)
        for file in before:
            file.unlink()


def write_summary(folder: Path, figures: Mapping[str, Figure], text: str) -> None:
    """Write a study's own run: its figures, by file name, and its report in Markdown, whose images are left out.

    TensorBoard sorts tags and opens the first group, so that it opens on the answer.
    """
    with new_events(folder) as writer:
        for name, figure in figures.items():
            writer.add_image(f"answer/{name.removesuffix('.png')}", pixels(figure), 0, dataformats="HWC")
        writer.add_text("answer", re.sub(r"!\[.*?\]\(.*?\)\n*", "", text), 0)
