"""What a comparison runs: an experiment file for each model and task, at a width, for as many steps as a budget allows.

The budget decides the steps from what a step costs on average, over the first batches of the data. Of the seeds the
first tries all learning rates; the others follow when it has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from app.cli.mistakes import check_known
from app.compare.findings import LABELS, best_factor
from app.compare.grid import Grid
from app.output.numbers import short
from app.study.experiments import Experiment, read_experiment
from app.study.study import Planned, Study
from datamodules import TaskData
from models.base import TRAINING_FLOPS, LanguageModel
from models.optim import Optim

RATES = [field.name for field in fields(Optim) if field.name.endswith("learning_rate")]
SAMPLED = 64  # batches that a step's cost is the mean of
TEST_ALONE = {"90/10": "90/5/5"}  # splits that validate on what they test on, and what to take in their place


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


def at_width(chosen: Experiment, d_model: int) -> dict[str, Any]:
    """What a width changes of the model's options; nothing for 0, which stands for the file's own."""
    return chosen.model.at_width(chosen.model_options, d_model) if d_model else {}


def other_split(chosen: Experiment) -> dict[str, Any]:
    """What changes of the task's options, so that the test is never what chooses the learning rate."""
    split = chosen.data_options.get("split")
    return {"split": TEST_ALONE[split]} if split in TEST_ALONE else {}


def build(chosen: Experiment, d_model: int) -> tuple[LanguageModel, TaskData]:
    """Model, without memory, and data; ValueError, naming the file, if they cannot be built."""
    try:
        data = chosen.data(**(chosen.data_options | other_split(chosen)))
        data.check()
        with torch.device("meta"):
            model = chosen.model(vocab_size=data.vocab_size, **(chosen.model_options | at_width(chosen, d_model)))
    except ValueError as error:
        width = f" at --d_models {d_model}" if d_model else ""
        raise ValueError(f"{chosen.path}{width}: {error}") from error
    return model, data


# Budgets --------------------------------------------------------------------------------------------------------------


@cache
def step_cost(folder: Path, task: str, name: str, d_model: int) -> dict[str, float]:
    """Tokens and training FLOPs of a step, on average over the first batches."""
    model, data = build(experiment(folder, task, name), d_model)
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
    warmup = experiment(grid.presets, task, model).optim.warmup_steps
    if number <= max(warmup, 1):
        raise ValueError(
            f"--{grid.unit} {budget:g} are {number} steps of {model} on {task}, not more than the {warmup} of its "
            f"warm-up (--validations {grid.validations}); give more"
        )
    return number


def check_runs(grid: Grid) -> None:
    """Raise ValueError if anything of the grid cannot be run."""
    for group in grid.groups():
        steps(grid, *group)


# Runs -----------------------------------------------------------------------------------------------------------------


def planned(grid: Grid, group: tuple[str, str, int, float], factor: float, seed: int) -> Planned:
    """One run of a comparison."""
    task, model, d_model, budget = group
    chosen = experiment(grid.presets, task, model)
    number = steps(grid, *group)
    options = [
        f"--config={chosen.path}",
        *(f"--model.{name}={value}" for name, value in at_width(chosen, d_model).items()),
        *(f"--data.{name}={value}" for name, value in other_split(chosen).items()),
    ]
    if factor != 1:
        rates = {name: getattr(chosen.optim, name) for name in RATES}
        options += [f"--optim.{name}={factor * rate:.6g}" for name, rate in rates.items() if rate is not None]
    options += [
        f"--trainer.max_steps={number}", f"--trainer.val_check_interval={number // grid.validations}",
        "--samples.max_new_tokens=0", f"--seed_everything={seed}", *grid.trainer,
    ]  # fmt: skip
    labels = dict(zip(LABELS, (task, model, d_model or chosen.model_options["d_model"], budget), strict=True))
    size = f"-d{d_model}" if d_model else ""
    name = f"{task}-{model}{size}-{short(budget)}-lr{factor:g}-s{seed}"
    return Planned(name, labels | {"factor": factor, "seed": seed, "unit": grid.unit}, options)


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
