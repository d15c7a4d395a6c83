"""What is settled when a run begins: one folder for all its processes, and the configuration in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler

from app.run.folders import CONFIG
from callbacks.atomic import write_text
from callbacks.lightning_internals import use_run_folder

PROFILE = "profile"  # in the names of a profiler's files


def keep_profile(trainer: L.Trainer, folder: Path) -> None:
    """Let the profiler, if there is one, write its report into the folder, unless it has a place of its own."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler):
        profiler.filename = profiler.filename or PROFILE
        profiler.dirpath = profiler.dirpath or folder


class RunFolder(L.Callback):
    """Gives all processes the folder of the first one, and keeps config.yaml there, whatever the loggers.

    A new run has its configuration in the folder from the start. That of a resumed one is replaced when training goes
    on, if options were changed: the next resume has them, too. Both times it is written whole or not at all.

    Args:
        folder: As this process chose it; processes that a cluster starts side by side may choose different ones.
        configuration: All options, as YAML.
    """

    def __init__(self, folder: Path, configuration: str) -> None:
        self.folder, self.configuration = folder, configuration

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle on the first process's folder; write the configuration of a new run."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        use_run_folder(trainer, self.folder)
        keep_profile(trainer, Path() if trainer.fast_dev_run else self.folder)  # whose folder does not stay
        if stage == "fit" and trainer.is_global_zero and not (self.folder / CONFIG).exists():
            write_text(self.folder / CONFIG, self.configuration)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the options that were changed for a resumed run."""
        path = self.folder / CONFIG
        if trainer.is_global_zero and path.read_text(encoding="utf-8") != self.configuration:
            write_text(path, self.configuration)
