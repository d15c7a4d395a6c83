"""What a comparison runs: an experiment file for each model and task, at a width, for as many steps as a budget allows.

The budget decides the steps from what a step costs on average, over the first batches of the data. Of the seeds the
first tries all learning rates; the others follow when it has chosen.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

import datamodules
import models
from app.cli.mistakes import nearest
from app.compare.findings import LABELS, best_factor
from app.output.numbers import short
from app.study.study import Planned, Study
from datamodules import CharText, TaskData
from models.base import TRAINING_FLOPS, LanguageModel
from models.optim import Optim

WIDTHS = (  # options that go along with d_model
    "num_heads", "state_width", "k", "rank", "embedding_rank", "num_param_tokens", "num_ffn_param_tokens",
)  # fmt: skip
RATES = ("learning_rate", "matrix_learning_rate", "head_learning_rate", "embedding_learning_rate")
SAMPLED = 64  # batches that a step's cost is the mean of
TEST_ALONE = {"90/10": "90/5/5"}  # splits that validate on what they test on, and what to take in their place


@dataclass(frozen=True)
class Grid:
    """All that is compared: names and values of the verb's options, checked.

    Attributes:
        models: Names.
        tasks: Folders of experiment files.
        d_models: Widths; 0 for the file's own.
        seeds: The first chooses the learning rate.
        unit: Of the budgets, `tokens` or `flops`.
        budgets: Of each run.
        factors: Of the learning rates.
        validations: In each run.
        presets: Folder of the experiment files.
        trainer: What is passed on to every fit, as typed.
    """

    models: list[str]
    tasks: list[str]
    d_models: list[int]
    seeds: list[int]
    unit: str
    budgets: list[float]
    factors: list[float]
    validations: int
    presets: Path
    trainer: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As it stands in the study's file."""
        return asdict(self) | {"presets": str(self.presets)}

    def groups(self) -> Iterator[tuple[str, str, int, float]]:
        """Task, model, width and budget of what is compared, each over learning rates and seeds."""
        return itertools.product(self.tasks, self.models, self.d_models, self.budgets)


@dataclass(frozen=True)
class Preset:
    """An experiment file: who is trained on what, and how."""

    path: Path
    model: str
    model_options: dict[str, Any]
    data: str
    data_options: dict[str, Any]
    optim: dict[str, Any]


# Experiment files -----------------------------------------------------------------------------------------------------


@cache
def presets(folder: Path) -> dict[Path, Preset]:
    """The experiment files in a folder that name a model and a task; ValueError if one is no YAML."""
    found = {}
    for path in sorted(folder.glob("*/*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            model, data = content["model"], content["data"]
            options = [part.get("init_args") or {} for part in (model, data)]
            found[path] = Preset(
                path, model["class_path"], options[0], data["class_path"], options[1], content.get("optim") or {}
            )
        except yaml.YAMLError as error:
            raise ValueError(f"--presets: {path} is no YAML file: {' '.join(str(error).split())}") from error
        except (AttributeError, KeyError, TypeError):
            continue  # an experiment of another kind
    return found


def preset(folder: Path, task: str, model: str) -> Preset:
    """The experiment file of a model on a task; ValueError if there is none, or more than one."""
    known = presets(folder)
    found = [one for path, one in known.items() if path.parent.name == task and one.model == model]
    if len(found) == 1:
        return found[0]
    names = sorted({path.parent.name for path, one in known.items() if one.model == model})
    if found:
        raise ValueError(f"--presets {folder} has several files of {model} on {task}: {', '.join(map(str, found))}")
    if names and not any(path.parent.name == task for path in known):
        raise ValueError(f"--tasks {task}: no such task{nearest(task, names)} {model} has files of {', '.join(names)}")
    raise ValueError(
        f"--models {model}: {folder} has no file {task}/*.yaml whose model is {model}; write one, as "
        f"{task}/{model.lower()}.yaml, with the model, the task and the recipe"
    )


def model_options(one: Preset, d_model: int) -> dict[str, Any]:
    """Options of the model at a width (0: the file's own), all that is a width going along."""
    parameters = inspect.signature(getattr(models, one.model)).parameters
    options = {name: p.default for name, p in parameters.items() if p.default is not p.empty} | one.model_options
    if not d_model:
        return one.model_options
    factor = d_model / options["d_model"]
    widths = {name: options[name] for name in WIDTHS if isinstance(options.get(name), int)}
    return (
        one.model_options
        | {"d_model": d_model}
        | {name: max(1, round(factor * width)) for name, width in widths.items()}
    )


def data_options(one: Preset) -> dict[str, Any]:
    """Options of the task, whose test is never what chooses the learning rate."""
    split = one.data_options.get("split")
    return one.data_options | ({"split": TEST_ALONE[split]} if split in TEST_ALONE else {})


def build(one: Preset, d_model: int) -> tuple[LanguageModel, TaskData]:
    """Model, without memory, and data; ValueError, naming the file, if they cannot be built."""
    try:
        data: TaskData = getattr(datamodules, one.data)(**data_options(one))
        if isinstance(data, CharText):
            data.parts  # noqa: B018 - reads the text, and checks it
        with torch.device("meta"):
            model: LanguageModel = getattr(models, one.model)(vocab_size=data.vocab_size, **model_options(one, d_model))
        Optim(**one.optim)
    except (AttributeError, TypeError, ValueError) as error:
        width = f" at --d_models {d_model}" if d_model else ""
        raise ValueError(f"{one.path}{width}: {error}") from error
    return model, data


# Budgets --------------------------------------------------------------------------------------------------------------


@cache
def step_cost(folder: Path, task: str, name: str, d_model: int) -> dict[str, float]:
    """Tokens and training FLOPs of a step, on average over the first batches."""
    model, data = build(preset(folder, task, name), d_model)
    shapes = [inputs_BT.shape for inputs_BT, _ in islice(data.train_dataloader(), SAMPLED)]
    tokens = [rows * length for rows, length in shapes]
    flops = [
        TRAINING_FLOPS * model.flops_per_token(length) * number
        for number, (_, length) in zip(tokens, shapes, strict=True)
    ]
    return {"tokens": sum(tokens) / len(tokens), "flops": sum(flops) / len(flops)}


def steps(grid: Grid, task: str, model: str, d_model: int, budget: float) -> int:
    """Optimizer steps of a run: a multiple of the validations; ValueError if the schedule has no room in them."""
    wanted = budget / step_cost(grid.presets, task, model, d_model)[grid.unit]
    number = grid.validations * round(wanted / grid.validations)
    warmup = Optim(**preset(grid.presets, task, model).optim).warmup_steps
    if number <= max(warmup, 1):
        raise ValueError(
            f"--{grid.unit} {budget:g} are {number} steps of {model} on {task}, not more than the {warmup} of its "
            f"warm-up (--validations {grid.validations}); give more"
        )
    return number


def check(grid: Grid) -> None:
    """Raise ValueError if anything of the grid cannot be run."""
    if not grid.presets.is_dir():
        raise ValueError(f"--presets {grid.presets} is no folder; name one with files TASK/*.yaml")
    for width in grid.d_models:
        if width < 0 or (width == 0 and len(grid.d_models) > 1):
            raise ValueError(f"--d_models {width} is no width; it must be at least 1")
    for task, model, d_model, budget in grid.groups():
        steps(grid, task, model, d_model, budget)


# Runs -----------------------------------------------------------------------------------------------------------------


def planned(grid: Grid, group: tuple[str, str, int, float], factor: float, seed: int) -> Planned:
    """One run of a comparison."""
    task, model, d_model, budget = group
    one = preset(grid.presets, task, model)
    number = steps(grid, *group)
    options = [f"--config={one.path}"]
    if d_model:
        sized = model_options(one, d_model)
        options += [f"--model.{name}={sized[name]}" for name in ("d_model", *WIDTHS) if name in sized]
    if data_options(one) != one.data_options:
        options.append(f"--data.split={data_options(one)['split']}")
    optim = asdict(Optim(**one.optim))
    if factor != 1:
        rates = {name: factor * optim[name] for name in RATES if optim[name] is not None}
        options += [f"--optim.{name}={rate:.6g}" for name, rate in rates.items()]
    options += [
        f"--trainer.max_steps={number}", f"--trainer.val_check_interval={number // grid.validations}",
        "--samples.max_new_tokens=0", f"--seed_everything={seed}", *grid.trainer,
    ]  # fmt: skip
    width = model_options(one, d_model).get("d_model") or build(one, 0)[0].hparams["d_model"]
    values = dict(zip(LABELS, (task, model, width, budget), strict=True))
    size = f"-d{d_model}" if d_model else ""
    name = f"{task}-{model}{size}-{short(budget)}-lr{factor:g}-s{seed}"
    return Planned(name, values | {"factor": factor, "seed": seed, "unit": grid.unit}, options)


def first_runs(grid: Grid) -> list[Planned]:
    """The runs of the first seed, at all learning rates."""
    return [planned(grid, group, factor, grid.seeds[0]) for group in grid.groups() for factor in grid.factors]


def extend(study: Study, grid: Grid) -> None:
    """Add the further seeds of all groups whose learning rate is chosen."""
    names = {run.name for run in study.plan}
    for group in grid.groups():
        first = [planned(grid, group, factor, grid.seeds[0]) for factor in grid.factors]
        records = {run.labels["factor"]: study.records.get(run.name) for run in first}
        if all(records.values()) and (factor := best_factor(records)) is not None:
            more: Sequence[Planned] = [planned(grid, group, factor, seed) for seed in grid.seeds[1:]]
            study.plan += [run for run in more if run.name not in names]
