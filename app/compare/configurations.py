"""Experiment files, their data, and what a trial makes of their models and recipes, ready to be planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from app.cli.mistakes import check_known
from app.cli.yaml_text import read_yaml
from app.compare.grid import Size
from app.compare.space import OWN, Choice, Trial
from app.study.experiments import Experiment, read_experiment
from datamodules import TaskData
from models.base import TRAINING_FLOPS, LanguageModel
from models.optim import Optim

RECIPES = Path(__file__).parents[1] / "configs" / "recipe"
RATES = [field.name for field in fields(Optim) if field.name.endswith("learning_rate")]
WARMUPS = ("warmup_steps", "momentum_warmup_steps")
SAMPLED = 64  # batches that a step's cost is the mean of
TEST_ALONE = {"90/10": "90/5/5"}  # splits that validate on what they test on, and what to take in their place
WINDOWS = (4, 16)  # multiples of the trained window that a text is tested at, too


# Experiment files -----------------------------------------------------------------------------------------------------


@cache
def experiment(folder: Path, task: str, model: str) -> Experiment:
    """The experiment file of a model on a task; ValueError if there is none, or more than one."""
    check_known("--tasks", "task", task, sorted({path.parent.name for path in folder.glob("*/*.yaml")}))
    of_task = [read_experiment(path, "--presets") for path in sorted((folder / task).glob("*.yaml"))]
    matching = [chosen for chosen in of_task if chosen.model.__name__ == model]
    if len(matching) > 1:
        files = ", ".join(str(chosen.path) for chosen in matching)
        raise ValueError(f"--presets {folder} has several files of {model} on {task}: {files}; keep one of them there")
    if not matching:
        raise ValueError(
            f"--models {model}: {folder} has no file {task}/*.yaml whose model is {model}; write one, as "
            f"{task}/{model.lower()}.yaml, with the model, the task and the recipe"
        )
    return matching[0]


@dataclass(frozen=True)
class Data:
    """What a comparison knows of a task's data.

    Attributes:
        vocab_size: Number of tokens.
        shapes: (B, T) of the first training batches.
        changes: Options over those of the experiment file.
    """

    vocab_size: int
    shapes: tuple[tuple[int, int], ...]
    changes: dict[str, Any]

    @property
    def step_tokens(self) -> float:
        """Tokens of a step, on average over the first batches."""
        return sum(rows * length for rows, length in self.shapes) / len(self.shapes)


@cache
def data_of(folder: Path, task: str, model: str) -> Data:
    """The data of an experiment file; ValueError, naming the file, if they cannot be had."""
    chosen = experiment(folder, task, model)
    split = chosen.data_options.get("split")
    changes = {"split": TEST_ALONE[split]} if split in TEST_ALONE else {}  # the test is never what chooses
    try:
        data = checked(chosen, changes)
        changes |= longer_windows(chosen, changes)
        shapes = tuple(tuple(inputs_BT.shape) for inputs_BT, _ in islice(data.train_dataloader(), SAMPLED))
    except ValueError as error:
        raise ValueError(f"{chosen.path}: {error}") from error
    return Data(data.vocab_size, shapes, changes)


def checked(chosen: Experiment, changes: Mapping[str, Any]) -> TaskData:
    """The data with these changes; ValueError if a stream of them cannot be drawn."""
    data = chosen.data(**chosen.data_options | changes)
    data.check()
    return data


def longer_windows(chosen: Experiment, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Windows that a text is tested at beside the trained one, as far as its test part has room for them."""
    options = chosen.data_options
    given = options.get("test_seq_lens") or []
    if not {"seq_len", "test_seq_lens"} <= options.keys():
        return {}
    wanted = sorted({*given, *(times * options["seq_len"] for times in WINDOWS)})
    while wanted != sorted(given):
        try:
            checked(chosen, {**changes, "test_seq_lens": wanted})
        except ValueError:
            wanted.pop()
        else:
            return {"test_seq_lens": wanted}
    return {}


# Configurations -------------------------------------------------------------------------------------------------------


def build(chosen: Experiment, vocab_size: int, options: Mapping[str, Any]) -> LanguageModel:
    """The model, without memory, with these options over those of the experiment file."""
    with torch.device("meta"):
        return chosen.model(vocab_size=vocab_size, **chosen.model_options | options)


@cache
def size_options(folder: Path, task: str, name: str, size: Size) -> dict[str, Any]:
    """What a size changes of the model's options; ValueError if it is refused."""
    chosen = experiment(folder, task, name)
    if size.num_layers and "num_layers" not in chosen.model_options:
        raise ValueError(f"--num_layers: {name} has no option of this name; leave it out")
    try:
        options = chosen.model.at_width(chosen.model_options, size.d_model) if size.d_model else {}
        options |= {"num_layers": size.num_layers} if size.num_layers else {}
        build(chosen, data_of(folder, task, name).vocab_size, options)
    except ValueError as error:
        raise ValueError(f"{chosen.path}{size.options}: {error}") from error
    return options


@cache
def model_options(folder: Path, task: str, name: str, size: Size, choices: tuple[Choice, ...]) -> dict[str, Any]:
    """What a size and a trial change of the model's options.

    A choice that the constructor refuses, beside those before it, is left out, so that the experiment file decides.
    ValueError if it refuses the size alone.
    """
    chosen, vocab_size = experiment(folder, task, name), data_of(folder, task, name).vocab_size
    options = size_options(folder, task, name, size)
    everything = dict(pair for choice in choices for pair in choice)
    if accepts(chosen, vocab_size, options | everything):
        return options | everything
    for choice in choices:
        if accepts(chosen, vocab_size, options | dict(choice)):
            options = options | dict(choice)
    return options


def accepts(chosen: Experiment, vocab_size: int, options: Mapping[str, Any]) -> bool:
    """Whether the model's constructor takes these options."""
    try:
        build(chosen, vocab_size, options)
    except ValueError:
        return False
    return True


@cache
def read_recipe(name: str) -> tuple[Optim, dict[str, Any]]:
    """A recipe and its options of the Trainer; ValueError if there is none of this name, or it is none."""
    check_known("--space", "recipe", name, sorted(path.stem for path in RECIPES.glob("*.yaml")))
    content = read_yaml(RECIPES / f"{name}.yaml", "--space")
    return Optim(**content["optim"]), content.get("trainer", {})


def recipe(chosen: Experiment, trial: Trial) -> tuple[Optim, dict[str, Any]]:
    """The recipe of a trial, with its options of the Trainer."""
    optim, trainer = (chosen.optim, {}) if trial.recipe == OWN else read_recipe(trial.recipe)
    changes: dict[str, Any] = {}
    if trial.factor != 1:
        rates = {name: getattr(optim, name) for name in RATES}
        changes |= {name: float(f"{trial.factor * rate:.6g}") for name, rate in rates.items() if rate is not None}
    if trial.weight_decay is not None:
        changes["weight_decay"] = float(trial.weight_decay)
    return replace(optim, **changes), trainer


def shortened(optim: Optim, share: float, steps: int) -> Optim:
    """The recipe in a run of so many steps, at a share of the budget.

    A warm-up lasts the same part of a short run as of a whole one, and a fifth of any at most.
    """
    return replace(optim, **{name: min(round(share * getattr(optim, name)), steps // 5) for name in WARMUPS})


@cache
def step_flops(folder: Path, task: str, name: str, size: Size, choices: tuple[Choice, ...]) -> float:
    """Training FLOPs of a step, on average over the first batches."""
    data = data_of(folder, task, name)
    options = model_options(folder, task, name, size, choices)
    model = build(experiment(folder, task, name), data.vocab_size, options)
    spent = [TRAINING_FLOPS * model.flops_per_token(length) * rows * length for rows, length in data.shapes]
    return sum(spent) / len(spent)
