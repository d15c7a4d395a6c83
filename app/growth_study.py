"""`python -m app growth-study`: does growing save compute? Recipes of growth against training from scratch.

Every run spends the same FLOPs, all stages counted; runs from scratch at several budgets say how many FLOPs they need
for the loss at which a grown run ends. What is needed of PyTorch is imported by the functions that use it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.growth_recipes import GROUPS, RECIPES, Scale, plan_corpus
from app.parsing import Group, Parser, explained, nearest
from app.studies import Planned, Study, command_line

HELP = "python -m app growth-study --help"
WIDTH = 160  # of what is printed where no terminal says how wide it is
CORPORA = ("tiny-shakespeare", "python-stdlib")
NONE = Group()
MODEL = {"d_model": 64, "num_heads": 4, "rope_base": 100.0, "num_param_tokens": 128, "num_ffn_param_tokens": 512}
DATA = {"seq_len": 128, "batch_size": 16}
OPTIM = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 50}
OURS = (  # of --trainer.*
    "max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "val_check_interval", "check_val_every_n_epoch",
    "limit_val_batches", "limit_test_batches", "callbacks", "fast_dev_run", "overfit_batches", "default_root_dir",
)  # fmt: skip


def growth_study(
    *,
    corpora: list[str] | None = None,
    seeds: list[int] | None = None,
    recipes: list[str] | None = None,
    steps: int = 600,
    first_fraction: float = 0.25,
    scratch_budgets: list[float] | None = None,
    rewarm_steps: int = 50,
    validations: int = 10,
    val_batches: int = 16,
    test_batches: int = 128,
    model: Group = NONE,
    data: Group = NONE,
    optim: Group = NONE,
    trainer: Group = NONE,
    out: Path = Path("runs/growth-study"),
    workers: int | None = None,
    print_commands: bool = False,
) -> int:
    """Compare recipes of growth with training from scratch at equal total FLOPs: compute saved or lost at equal loss.

    Args:
        corpora: Texts, as in --data.corpus of fit; by default [tiny-shakespeare,python-stdlib].
        seeds: Of data and models; by default [1,2,3].
        recipes: Some of exact, published, dropped, no_rewarm, early, late, one_large; by default all.
        steps: Of the run from scratch at the final size; its FLOPs are the budget of every run.
        first_fraction: First size as a part of the final one.
        scratch_budgets: Of the runs from scratch, in budgets, 1 among them; by default [0.5,0.7,1,1.4].
        rewarm_steps: Steps in which new rows are warmed up, by the recipes that do so.
        validations: In each run.
        val_batches: Batches in each of them, and just before and after each growth.
        test_batches: Batches of the test split on which the end of each run is measured.
        model: Of TokenFormer; --model.num_param_tokens and --model.num_ffn_param_tokens are the final sizes.
        data: Of CharText.
        optim: Of all runs.
        trainer: Of Lightning's Trainer, such as --trainer.accelerator, --trainer.devices and --trainer.precision.
        out: Folder of the runs and of study.json, growth_study.md and growth_study.csv.
        workers: Runs side by side; by default one a GPU, else one a core.
        print_commands: Print the commands of all runs that are not done, and start none.

    Returns:
        0, or 1 if a run failed.
    """
    scale = checked_scale(
        {"model": model, "data": data, "optim": optim, "trainer": trainer}, steps, first_fraction,
        scratch_budgets or [0.5, 0.7, 1.0, 1.4], rewarm_steps, (validations, val_batches, test_batches),
    )  # fmt: skip
    at_least_one(workers=1 if workers is None else workers)
    plan = whole_plan(scale, unique("corpora", corpora or CORPORA), chosen_seeds(seeds or [1, 2, 3]), chosen(recipes))
    options = {"scale": asdict(scale), "corpora": corpora, "seeds": seeds, "recipes": recipes}
    return conduct(Study("growth-study", command_line(), options, plan), out, workers, print_commands)


# Options --------------------------------------------------------------------------------------------------------------


def at_least_one(**values: int) -> None:
    """Raise ValueError naming the first option below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")


def unique(option: str, values: Sequence[Any]) -> list[Any]:
    """The values; ValueError if one stands twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"--{option} {list(values)} names one twice")
    return list(values)


def chosen_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds; ValueError for one that no run takes."""
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise ValueError(f"--seeds {wrong[0]} is not between 0 and 2^32 - 1")
    return unique("seeds", seeds)


def chosen(recipes: Sequence[str] | None) -> list[str]:
    """The recipes; ValueError for one that does not exist."""
    for name in recipes or ():
        if name not in RECIPES:
            raise ValueError(f"--recipes {name}: no such recipe{nearest(name, RECIPES)} they are {', '.join(RECIPES)}")
    return unique("recipes", recipes or list(RECIPES))


def parsed(kind: Callable[..., Any], prefix: str, defaults: Mapping[str, Any], group: Group, ours: set[str]) -> Any:
    """What differs from a constructor's own defaults: `defaults`, and what was typed. UsageError if it will not do."""
    parser = Parser(allow_abbrev=False)
    parser.add_class_arguments(kind, prefix, skip=ours)
    parser.set_defaults({f"{prefix}.{name}": value for name, value in defaults.items()})
    for option in group.options:
        name = option.partition("=")[0]
        if name.removeprefix(f"--{prefix}.").partition(".")[0].removesuffix("+") in ours:
            raise ValueError(f"{name} is given by the study's own options; leave it out")
    with explained(HELP):
        values = parser.parse_args(list(group.options))[prefix].as_dict()
    own = inspect.signature(kind).parameters
    return {k: value for k, value in values.items() if k in defaults or value != own[k].default}


def checked_scale(
    groups: Mapping[str, Group], steps: int, first_fraction: float, budgets: Sequence[float], rewarm_steps: int,
    counts: tuple[int, int, int],
) -> Scale:  # fmt: skip
    """The size of the study; ValueError, naming the option, where one will not do."""
    from lightning.pytorch import Trainer

    from datamodules import CharText
    from models import TokenFormer
    from models.optim import Optim

    at_least_one(steps=steps, validations=counts[0], val_batches=counts[1], test_batches=counts[2])
    if rewarm_steps < 0:
        raise ValueError(f"--rewarm_steps is {rewarm_steps}; it must be 0 (off) or more")
    if not 0 < first_fraction < 1:
        raise ValueError(f"--first_fraction is {first_fraction}; it must be between 0 and 1")
    if min(budgets) <= 0 or 1 not in budgets:
        raise ValueError(f"--scratch_budgets {list(budgets)} must be above 0 and hold 1, the budget of the grown runs")
    model = parsed(TokenFormer, "model", MODEL, groups["model"], {"vocab_size"})
    data = parsed(CharText, "data", DATA, groups["data"], {"corpus", "seed"})
    optim = parsed(Optim, "optim", OPTIM, groups["optim"], {"restart_steps"})
    parsed(Trainer, "trainer", {}, groups["trainer"], set(OURS))
    TokenFormer(vocab_size=2, **model)
    Optim(**optim)
    first = {group: max(1, round(first_fraction * model[group])) for group in GROUPS}
    if any(first[group] >= model[group] for group in GROUPS):
        raise ValueError(f"--first_fraction {first_fraction}: the first sizes {first} are the final ones already")
    sorted_budgets = tuple(sorted(unique("scratch_budgets", budgets)))
    return Scale(model, data, optim, groups["trainer"].options, first, steps, sorted_budgets, rewarm_steps, *counts)


def whole_plan(scale: Scale, corpora: Sequence[str], seeds: Sequence[int], names: Sequence[str]) -> list[Planned]:
    """All runs; ValueError if a text cannot be read, or a stage would be too short."""
    from datamodules import CharText

    labels = {corpus: Path(corpus).stem for corpus in corpora}
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"--corpora {list(corpora)}: two have the same name; rename a file")
    plan: list[Planned] = []
    for corpus, label in labels.items():
        try:
            text = CharText(corpus=corpus, **scale.data)
            vocab_size = text.vocab_size if text.parts else 0
        except ValueError as error:
            raise ValueError(str(error).replace("--data.corpus", "--corpora")) from error
        plan += plan_corpus(scale, corpus, label, vocab_size, seeds, names)
    return plan


# Runs -----------------------------------------------------------------------------------------------------------------


def conduct(study: Study, out: Path, workers: int | None, print_commands: bool) -> int:
    """Carry the study out, or print its commands; returns the exit code."""
    from rich.console import Console

    from app.growth_findings import findings, plain
    from app.growth_report import report
    from app.launching import alone, default_workers, execute, plain_commands, resumed, stopped_by_sigterm

    if print_commands:
        print(plain_commands(study.plan, out))
        return 0
    console = Console(width=None if sys.stdout.isatty() else WIDTH)

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with alone(out), stopped_by_sigterm():
        resumed(study, out)
        failures = execute(study, study.plan, out, workers or default_workers(), tell)
        found = findings(study)
        study.findings = {"rows": plain(found)}
        study.save(out)
        report(study, found, out, console)
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failures else 0
