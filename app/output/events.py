"""TensorBoard's events of what is no run: reports and their figures. Loads PyTorch when they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
