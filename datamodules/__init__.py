"""The tasks: LightningDataModules whose samples are pure functions of (seed, split, index)."""

from datamodules.associative_recall import AssociativeRecall
from datamodules.base import StreamLoader, TaskData
from datamodules.binding import Binding
from datamodules.char_text import CharText
from datamodules.copying import Copying

__all__ = ["AssociativeRecall", "Binding", "CharText", "Copying", "StreamLoader", "TaskData"]
