"""`python -m app scorecard`: nine requirements, measured for any model against the one-layer Transformer.

What is measured is in `app.scorecard.measure`, the bars are in `app.scorecard.requirements`. Files are written whole,
when all of a model has been measured: an interrupted run leaves those of the models before, and nothing of the one it
was at.

PyTorch and what needs it are imported by the functions that use them, so that `scorecard --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from app.cli.checks import at_least_one, check_folder, check_seed
from app.cli.groups import OptionGroup
from app.cli.names import known_models
from app.machine import Device, find_device, num_cores, num_threads
from app.output.tables import new_console

BudgetName = Literal["quick", "full"]
Task = Literal["copying", "recall", "char_text"]
EVERYBODY = "all"  # in the place of a model's name
ALL_MODELS, RECIPE = OptionGroup(EVERYBODY), OptionGroup()
HELP = "python -m app scorecard --help"


def scorecard(
    model: OptionGroup = ALL_MODELS,
    *,
    budget: BudgetName = "quick",
    tasks: Task | list[Task] | None = None,
    corpus: str = "python-stdlib",
    data_dir: str = "data",
    seed: int = 1,
    seeds: int | None = None,
    device: Device = "auto",
    workers: int | None = None,
    threads: int = 1,
    out: Path = Path("runs/scorecard"),
    optim: OptionGroup = RECIPE,
) -> int:
    """Measure a model by the nine requirements, against the one-layer Transformer, and say which it passes.

    Args:
        model: A model, with its options as --model.NAME beside it (one layer unless they say otherwise); or all, each
            at its defaults, and a table of all of them.
        budget: quick takes under ten minutes a model on two cores; full trains several times as long.
        tasks: Some of the three tasks, as in [copying,recall]; what needs another one is not measured. By default all.
        corpus: Text of char_text: python-stdlib, tiny-shakespeare, text8, enwik8, or the path of a UTF-8 text file.
        data_dir: Folder of downloaded corpora.
        seed: The first seed, of data and models.
        seeds: Number of seeds, whose mean counts; by default 1 if quick and 3 if full.
        device: Where the models run; auto takes a GPU if there is one.
        workers: Trainings side by side, each on one thread; by default as many as there are cores, and one on a GPU.
        threads: CPU threads of what is timed.
        out: Folder of the results: in MODEL/ scorecard.json, scorecard.md and TensorBoard's events, and of all models
            scorecard.json and scorecard.md.
        optim: The recipe of the models measured, by --optim.NAME; muon with learning rate 1e-2 and weight decay 0
            unless it says otherwise, as for the Transformer.

    Returns:
        0, whether or not the requirements are met.
    """
    names = check_options(model, seed, seeds, workers, threads, out)
    from app.scorecard.candidates import candidate
    from app.scorecard.measure import BUDGETS, ScorecardSettings, Surveyor
    from app.scorecard.report import report_all_cards, report_card
    from app.scorecard.training import check_text

    specs = [candidate(name, model, optim, HELP) for name in names]
    chosen_tasks, amount, on = every_task(tasks), BUDGETS[budget], find_device(device)
    check_text(chosen_tasks, corpus, data_dir, amount.learning)
    console = new_console()

    def tell(doing: str) -> None:
        console.print(f"[dim]{doing}[/]", highlight=False)

    all_seeds = tuple(range(seed, seed + (seeds or amount.seeds)))
    settings = ScorecardSettings(amount, chosen_tasks, all_seeds, corpus, data_dir, on, side_by_side(workers, on), tell)
    with num_threads(threads):
        surveyor = Surveyor(settings)
        cards = [report_card(surveyor.card(spec), out / spec.model, console) for spec in specs]
    report_all_cards(cards, out, console)
    return 0


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
    names = chosen(model)
    check_seed("seed", seed)
    at_least_one(seeds=seeds, workers=workers, threads=threads)
    check_folder("out", out)
    return names


def chosen(model: OptionGroup) -> tuple[str, ...]:
    """The models that `--model` names, whose options are for one of them alone."""
    names = known_models(None if model.value == EVERYBODY else [model.value or ""], "--model", EVERYBODY)
    if len(names) > 1 and model.options:
        option = model.options[0].partition("=")[0]
        raise ValueError(f"{option} is for one model; name it by --model, or leave the option out")
    return names


def side_by_side(workers: int | None, device: str) -> int:
    """Trainings at a time: as many as asked for, or as there are cores; one on a GPU."""
    return 1 if device == "cuda" else workers or num_cores()
