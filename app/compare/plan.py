"""What a comparison runs: an experiment file for each model and task, at a size, for as many steps as a budget allows.

The budget decides the steps from what a step costs on average, over the first batches of the data. First come the runs
of the search, which validation alone judges; what it chose is then measured with fresh seeds. The plan is a function of
the grid and the records that there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.compare.configurations import data_of, experiment, model_options, read_recipe, recipe, shortened, step_flops
from app.compare.findings import LABELS
from app.compare.grid import Grid, Group
from app.compare.outcomes import result
from app.compare.search import MAX_WIDENINGS, Search, search
from app.compare.space import Trial, is_number
from app.output.numbers import short
from app.study.study import Planned, Record, Study, as_options

SHORTEST = 5  # steps, below which a run is none


# Budgets --------------------------------------------------------------------------------------------------------------


def num_steps(grid: Grid, group: Group, trial: Trial, share: float = 1.0) -> float:
    """Optimizer steps that a share of the budget allows."""
    task, name, size, budget = group
    if grid.unit == "tokens":
        return share * budget / data_of(grid.presets, task, name).step_tokens
    return share * budget / step_flops(grid.presets, task, name, size, trial.choices)


def measured_steps(grid: Grid, group: Group, trial: Trial) -> int:
    """Steps of a run that is reported: a multiple of the validations; ValueError if the schedule has no room."""
    task, name, _, budget = group
    steps = grid.validations * round(num_steps(grid, group, trial) / grid.validations)
    warmup = 0 if grid.search else experiment(grid.presets, task, name).optim.warmup_steps
    if steps <= max(warmup, 1):
        raise ValueError(
            f"--{grid.unit} {budget:g} are {steps} steps of {name} on {task}, not more than the {warmup} of its "
            f"warm-up (--validations {grid.validations}); give more"
        )
    return steps


def tried_steps(grid: Grid, group: Group, trial: Trial, share: float) -> int:
    """Steps of a trial; ValueError for too few of them."""
    task, name, _, budget = group
    steps = round(num_steps(grid, group, trial, share))
    if steps < SHORTEST:
        raise ValueError(
            f"--{grid.unit} {budget:g}: the shortest trials of {name} on {task}, at {share:.3g} of it, have {steps} "
            f"steps, fewer than {SHORTEST}; give more, or a smaller --search"
        )
    return steps


def check_runs(grid: Grid) -> None:
    """Raise ValueError if anything of the grid cannot be run."""
    for name in grid.space.recipes if grid.search else ():
        read_recipe(name)
    for group in grid.groups():
        model_options(grid.presets, *group[:3], ())
        measured_steps(grid, group, Trial())
        if grid.search:
            tried_steps(grid, group, Trial(), grid.rungs[0])


# Runs -----------------------------------------------------------------------------------------------------------------


def planned(grid: Grid, group: Group, trial: Trial, share: float, labels: dict[str, Any], steps: int) -> Planned:
    """One run of a comparison, which has these labels beside those of its group."""
    task, name, size, budget = group
    chosen = experiment(grid.presets, task, name)
    optim, trainer = recipe(chosen, trial)
    optim = shortened(optim, share, steps) if grid.search else optim
    changed = model_options(grid.presets, task, name, size, trial.choices)
    own, is_tried = asdict(chosen.optim), "rung" in labels
    interval = steps if is_tried else steps // grid.validations
    options = [
        f"--config={chosen.path}",
        *as_options("model", changed),
        *as_options("data", data_of(grid.presets, task, name).changes),
        *as_options("optim", {key: value for key, value in asdict(optim).items() if value != own[key]}),
        *as_options("trainer", trainer),
        f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={interval}",
        "--samples.max_new_tokens=0", f"--seed_everything={labels['seed']}", *grid.trainer,
    ]  # fmt: skip
    has = {key: value for key, value in trial.plain().items() if changed.get(key, value) == value}
    place = f"t{trial.number}-r{labels['rung']}" if is_tried else f"s{labels['seed']}"
    d_model = size.d_model or chosen.model_options["d_model"]
    of_group = dict(zip(LABELS, (task, name, d_model, size.num_layers or None, budget), strict=True))
    of_trial = {"trial": trial.number, "factor": trial.factor, "configuration": has, "unit": grid.unit}
    run = f"{task}-{name}{size.name}-{short(budget)}-{place}"
    return Planned(run, of_group | of_trial | labels, options, test=not is_tried)


def tried(grid: Grid, group: Group, trial: Trial, share: float) -> Planned:
    """A run of the search, which is validated once, at its end, and never tested."""
    labels = {"seed": grid.search_seed, "rung": grid.rungs.index(share) + 1}
    return planned(grid, group, trial, share, labels, tried_steps(grid, group, trial, share))


def searched(grid: Grid, group: Group, records: Mapping[str, Record]) -> Search:
    """What the records decide of a group's search; without anything to choose from it has ended."""
    trials = grid.trials(experiment(grid.presets, group[0], group[1]).model)
    if not grid.chooses:
        return Search([], (1.0, 1.0), trials[0], ended=True)

    def done(trial: Trial, share: float) -> Any:
        return result(records.get(tried(grid, group, trial, share).name))

    return search(trials, grid.span, grid.rungs, done, MAX_WIDENINGS if grid.search else 0)


def ends(grid: Grid, model: type, trial: Trial) -> list[str]:
    """Ordered options of a trial, but for the learning rate, that stand at an end of the space with room beyond it."""
    ordered = {name: values for name, values in grid.space.choices(model).items() if all(map(is_number, values))}
    ordered |= {"weight_decay": grid.space.weight_decay}
    has = {name: value for name, value in trial.plain().items() if name in ordered}
    room = {name: value > isinstance(value, int) for name, value in has.items()}  # below it: no option is below 0
    return [
        name
        for name, value in has.items()
        if value == max(ordered[name]) or (value == min(ordered[name]) and room[name])
    ]


def measured(grid: Grid, group: Group, found: Search) -> list[Planned]:
    """The runs that are reported, of what was chosen, or of the experiment file as it is where nothing learned."""
    trial = found.chosen or Trial()
    about = {
        "trials": len({trial.number for trial, _ in found.runs}),
        "learned": found.chosen is not None,
        "widenings": found.widenings,
        "span": list(found.span),
        "edge": found.edge,
        "ends": ends(grid, experiment(grid.presets, group[0], group[1]).model, trial) if grid.search else [],
    }
    steps = measured_steps(grid, group, trial)
    return [planned(grid, group, trial, 1.0, {"seed": seed, "search": about}, steps) for seed in grid.seeds]


def extend(study: Study, grid: Grid) -> None:
    """Plan all runs that the study's records decide, group by group."""
    study.plan = []
    for group in grid.groups():
        found = searched(grid, group, study.records)
        study.plan += [tried(grid, group, trial, share) for trial, share in found.runs]
        study.plan += measured(grid, group, found) if found.ended else []
