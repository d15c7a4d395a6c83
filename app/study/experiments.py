"""Experiment files as `fit` reads them: who is trained on what, and how, every default included."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from app.cli.help import known_names
from app.cli.mistakes import explained
from app.cli.yaml_text import read_yaml
from app.run.fit import CLI, prepare_lightning
from datamodules import TaskData
from models.base import LanguageModel
from models.optim import Optim


@dataclass(frozen=True)
class Experiment:
    """An experiment file.

    Attributes:
        path: The file.
        model: The class of the model.
        model_options: All that it is built with, but for `vocab_size`, which the data give.
        data: The class of the task.
        data_options: All that it is built with, but for the seed.
        optim: The recipe.
    """

    path: Path
    model: type[LanguageModel]
    model_options: dict[str, Any]
    data: type[TaskData]
    data_options: dict[str, Any]
    optim: Optim


class Reader(CLI):
    """Parses what `fit` would, and builds nothing."""

    def before_instantiate_classes(self) -> None:
        """No folder."""

    def instantiate_classes(self) -> None:
        """No model."""

    def after_instantiate_classes(self) -> None:
        """No check of a checkpoint."""


@cache
def read_experiment(path: Path, option: str) -> Experiment:
    """The experiment in a file; ValueError, naming the option that led to it, says what `fit` would say of it."""
    read_yaml(path, option)
    prepare_lightning()
    try:
        with explained("python -m app fit --help", known_names):
            config = Reader("fit", [f"--config={path}"], None, {}, ExitStack()).config
    except ValueError as error:
        raise ValueError(f"{option} {path}: {error}") from error
    model, data = config["model"], config["data"]
    return Experiment(
        path, class_of(model["class_path"]), without(model["init_args"].as_dict(), "vocab_size"),
        class_of(data["class_path"]), without(data["init_args"].as_dict(), "seed"), Optim(**config["optim"].as_dict()),
    )  # fmt: skip


def class_of(class_path: str) -> Any:
    """The class that a configuration names, as `models.Palm`."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def without(options: dict[str, Any], linked: str) -> dict[str, Any]:
    """The options but for one whose value comes from elsewhere."""
    return {name: value for name, value in options.items() if name != linked}
