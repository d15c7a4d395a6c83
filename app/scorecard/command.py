"""`python -m app scorecard`: nine requirements, measured for any model against the one-layer Transformer.

What is trained is in `app.scorecard.training`, what else is measured in `app.scorecard.measure`, the bars are in
`app.scorecard.requirements`. The trainings are a study: done ones are skipped, interrupted ones go on. A scorecard's
files are written whole, when all of a model has been measured.

PyTorch and what needs it are imported by the functions that use them, so that `scorecard --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich import get_console

from app.cli.checks import at_least_one, check_folder, check_seed
from app.cli.groups import OptionGroup
from app.cli.invocation import command_line
from app.cli.names import known_models
from app.machine import Device, find_device, num_cores, num_threads
from app.output.progress import announce
from app.scorecard.recipe import RECIPE
from app.study.conduct import conduct
from app.study.study import Study

BudgetName = Literal["quick", "full"]
Task = Literal["copying", "recall", "char_text"]
EVERYBODY = "all"  # in the place of a model's name
MODEL_OPTIONS = OptionGroup(EVERYBODY, defaults={"num_layers": 1}, ours=frozenset({"vocab_size"}))
OPTIM_OPTIONS = OptionGroup(defaults=RECIPE)
HELP = "python -m app scorecard --help"


def scorecard(
    model: OptionGroup = MODEL_OPTIONS,
    *,
    budget: BudgetName = "quick",
    tasks: Task | list[Task] | None = None,
    corpus: str | list[str] = "python-stdlib",
    data_dir: str = "data",
    seed: int = 1,
    seeds: int | None = None,
    device: Device = "auto",
    workers: int | None = None,
    threads: int = 1,
    out: Path = Path("runs/scorecard"),
    optim: OptionGroup = OPTIM_OPTIONS,
    print_commands: bool = False,
) -> int:
    """Measure a model by the nine requirements, against the one-layer Transformer, and say which it passes.

    Args:
        model: A model, with its options as --model.NAME beside it; or all, each at its defaults, and a table of all.
        budget: quick takes under ten minutes a model on two cores; full trains several times as long.
        tasks: Some of the three tasks, as in [copying,recall]; what needs another one is not measured. By default all.
        corpus: Text of char_text: python-stdlib, tiny-shakespeare, text8, enwik8, or the path of a UTF-8 text file or
            a folder of such, or several paths.
        data_dir: Folder of downloaded corpora and encoded texts.
        seed: The first seed, of data and models.
        seeds: Number of seeds, whose mean counts; by default 1 if quick and 3 if full.
        device: Where the models run; auto takes a GPU if there is one.
        workers: Trainings side by side, each on one thread where there are several; by default one a GPU, else one a
            core.
        threads: CPU threads of what is timed.
        out: Folder of the trainings' runs and study.json, and of the results: in MODEL/ scorecard.json, scorecard.md
            and TensorBoard's events, and of all models scorecard.json and scorecard.md.
        optim: The recipe of the models measured, by --optim.NAME; unless it says otherwise the Transformer's.
        print_commands: Print the commands of the trainings that are not done, and start none.

    Returns:
        0, whether or not the requirements are met; 1 if a training failed.
    """
    names = check_options(model, seed, seeds, workers, threads, out)
    if not print_commands:
        announce(f"scorecard: {', '.join(names)} in {out}")
    from app.scorecard.candidates import candidate
    from app.scorecard.measure import BUDGETS
    from app.scorecard.training import check_text, lessons, trainings

    specs = [candidate(name, model, optim, HELP) for name in names]
    chosen_tasks, amount, on = every_task(tasks), BUDGETS[budget], find_device(device)
    if "char_text" in chosen_tasks:
        check_text(corpus, data_dir, amount.learning)
    all_seeds = tuple(range(seed, seed + (seeds or amount.seeds)))
    plan = trainings(specs, chosen_tasks, lessons(amount.learning, corpus, data_dir), all_seeds, on)
    options = {"tasks": chosen_tasks, "seeds": all_seeds, "corpus": corpus, "budget": asdict(amount)}
    study = Study("scorecard", command_line(), options, plan)
    judge = partial(conclude, specs=specs, budget=amount, device=on, threads=threads)
    return conduct(study, out, workers or (num_cores() if on == "cpu" else None), print_commands, judge)


def conclude(
    study: Study, out: Path, console: Any, *, specs: Sequence[Any], budget: Any, device: str, threads: int
) -> None:
    """Measure what is not learned, and report the scorecards one by one, then all."""
    from app.scorecard.measure import Surveyor
    from app.scorecard.report import report_all_cards, report_card

    def tell(doing: str) -> None:
        get_console().print(f"[dim]{doing}[/]", highlight=False)

    with num_threads(threads):
        surveyor = Surveyor(study, budget, device, tell)
        cards = [report_card(surveyor.card(spec), out / spec.model, console) for spec in specs]
    study.findings = {"passed": {card.model: card.verdicts for card in cards}}
    report_all_cards(cards, out, console)


# Options --------------------------------------------------------------------------------------------------------------


def every_task(tasks: Task | list[Task] | None) -> tuple[str, ...]:
    """The tasks to measure, each once."""
    from app.scorecard.training import TASKS

    wanted = TASKS if tasks is None else [tasks] if isinstance(tasks, str) else tasks
    return tuple(task for task in TASKS if task in wanted)


def check_options(
    model: OptionGroup, seed: int, seeds: int | None, workers: int | None, threads: int, out: Path
) -> tuple[str, ...]:
    """The models' names; ValueError for what would fail only after minutes of measuring."""
    names = chosen_models(model)
    check_seed("seed", seed)
    at_least_one(seeds=seeds, workers=workers, threads=threads)
    check_folder("--out", out)
    return names


def chosen_models(model: OptionGroup) -> tuple[str, ...]:
    """The models that `--model` names, whose options are for one of them alone."""
    names = known_models(None if model.value == EVERYBODY else [model.value or ""], "--model", EVERYBODY)
    if len(names) > 1 and model.options:
        option = model.options[0].partition("=")[0]
        raise ValueError(f"{option} is for one model; name it by --model, or leave the option out")
    return names
