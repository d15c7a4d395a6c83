"""`python -m app compare`: models on tasks under one budget, over sizes and seeds, each run an ordinary fit.

A run is an experiment file, such as `app/configs/experiment/recall/palm.yaml`, with the study's size and budget, the
configuration that the search chose, and a seed that chose nothing. What needs PyTorch is imported by the functions that
use it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from app.cli.checks import at_least_one, unique, unique_seeds
from app.cli.groups import OptionGroup
from app.cli.invocation import command_line
from app.cli.names import known_models
from app.compare.grid import Grid, budget, sizes
from app.compare.space import Space, read_space
from app.output.progress import announce
from app.study.conduct import OURS, check_place_and_trainer, conduct
from app.study.study import Study

HELP = "python -m app compare --help"
CONFIGS = Path(os.path.relpath(Path(__file__).parents[1] / "configs"))
PRESETS, SPACE = CONFIGS / "experiment", CONFIGS / "search.yaml"
TASKS = ("copying", "recall", "stdlib", "shakespeare")
TRAINER_OPTIONS = OptionGroup(ours=OURS)


def compare(
    *,
    models: list[str] | None = None,
    tasks: list[str] | None = None,
    d_models: list[int] | None = None,
    num_layers: list[int] | None = None,
    seeds: list[int] | None = None,
    tokens: float | list[float] | None = None,
    flops: float | list[float] | None = None,
    search: int = 0,
    space: Path = SPACE,
    search_seed: int = 0,
    learning_rates: list[float] | None = None,
    validations: int = 10,
    presets: Path = PRESETS,
    trainer: OptionGroup = TRAINER_OPTIONS,
    out: Path = Path("runs/compare"),
    workers: int | None = None,
    print_commands: bool = False,
) -> int:
    """Compare models on tasks under one budget, with the same search for every model: means over seeds, and who learns.

    Args:
        models: Models, the first of which the others are compared with; by default all, the Transformer first.
        tasks: Folders of experiment files; by default [copying,recall,stdlib,shakespeare].
        d_models: Widths; what a model scales with its width goes along. By default the width of the experiment file.
        num_layers: Numbers of layers, each with each width. By default that of the experiment file.
        seeds: Seeds of data and models, none of which chooses anything; by default [1,2,3,4,5].
        tokens: Budget of training tokens of each run, or several budgets.
        flops: Budget of training FLOPs of each run, or several, in the place of tokens.
        search: Configurations to try for each model and task, the same number for all: halved successively, chosen by
            validation, and told in the report. 0 takes the experiment files as they are.
        space: File of what the search chooses from.
        search_seed: Seed of data and models in the search, none of --seeds.
        learning_rates: Multiples of the file's learning rates to try in the place of a search, at the whole budget.
        validations: Validations in each run, the last at its end.
        presets: Folder of the experiment files, TASK/*.yaml.
        trainer: Options of Lightning's Trainer, such as --trainer.accelerator, --trainer.devices, --trainer.precision.
        out: Folder of the runs and of study.json, compare.md and compare.csv.
        workers: Runs side by side; by default one a GPU, else one a core.
        print_commands: Print the commands of the runs that can start, and start none. When they are done, print again.

    Returns:
        0, or 1 if a run failed.
    """
    at_least_one(workers=workers)
    factors = [] if learning_rates is None else unique("learning_rates", learning_rates)
    grid = Grid(
        unique("models", known_models(models)), unique("tasks", TASKS if tasks is None else tasks),
        sizes(d_models, num_layers), unique_seeds([1, 2, 3, 4, 5] if seeds is None else seeds), search, search_seed,
        space_of(search, space), *budget(tokens, flops), factors, validations, presets, trainer.options,
    )  # fmt: skip
    if not print_commands:
        announce(f"compare: {grid.num_runs} runs in {out}")
    from app.compare.plan import check_runs, extend

    check_place_and_trainer(out, trainer, print_commands, HELP)
    check_runs(grid)
    study = Study("compare", command_line(), grid.plain(), plan=[])
    return conduct(study, out, workers, print_commands, conclude, lambda study: extend(study, grid))


def space_of(search: int, file: Path) -> Space:
    """What a search chooses from; nothing without one. ValueError for a file that has no use."""
    if search:
        return read_space(file)
    if file != SPACE:
        raise ValueError(f"--space {file} is what a search chooses from; say how many it tries, by --search")
    return Space([], (1.0, 1.0), [], {})


def conclude(study: Study, out: Path, console: Any) -> None:
    """Find out what the runs say, and report it."""
    from app.compare.findings import chosen_runs, comparison_rows
    from app.compare.report import report_comparison

    rows = comparison_rows(study)
    study.findings = {"chosen": chosen_runs(study), "rows": [row.plain() for row in rows]}
    report_comparison(study, rows, out, console)
