"""`python -m app growth-study`: does growing save compute? Recipes of growth against training from scratch.

Every run spends the same FLOPs, all stages counted; runs from scratch at several budgets say how many FLOPs they need
for the loss at which a grown run ends. What is needed of PyTorch is imported by the functions that use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.cli.checks import at_least_one, unique, unique_seeds
from app.cli.groups import OptionGroup
from app.cli.invocation import command_line
from app.cli.mistakes import check_known
from app.growth_study.plan import GROUPS, RECIPES, Scale, plan_corpus
from app.output.progress import announce
from app.study.conduct import OURS, check_place_and_trainer, conduct, parsed
from app.study.study import Planned, Study

HELP = "python -m app growth-study --help"
CORPORA = ("tiny-shakespeare", "python-stdlib")
MODEL = {"d_model": 64, "num_heads": 4, "rope_base": 100.0, "num_param_tokens": 128, "num_ffn_param_tokens": 512}
DATA = {"seq_len": 128, "batch_size": 16}
OPTIM = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 50}
MODEL_OPTIONS = OptionGroup(kind="TokenFormer", defaults=MODEL, ours=frozenset({"vocab_size"}))
DATA_OPTIONS = OptionGroup(kind="CharText", defaults=DATA, ours=frozenset({"corpus", "seed"}))
OPTIM_OPTIONS = OptionGroup(defaults=OPTIM, ours=frozenset({"restart_steps"}))
TRAINER_OPTIONS = OptionGroup(ours=OURS | {"limit_val_batches", "limit_test_batches"})


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
    model: OptionGroup = MODEL_OPTIONS,
    data: OptionGroup = DATA_OPTIONS,
    optim: OptionGroup = OPTIM_OPTIONS,
    trainer: OptionGroup = TRAINER_OPTIONS,
    out: Path = Path("runs/growth-study"),
    workers: int | None = None,
    print_commands: bool = False,
) -> int:
    """Compare recipes of growth with training from scratch at equal total FLOPs: compute saved or lost at equal loss.

    Args:
        corpora: Texts, as in --data.corpus of fit; by default [tiny-shakespeare,python-stdlib].
        seeds: Seeds of data and models; by default [1,2,3].
        recipes: Some of exact, published, dropped, no_rewarm, restarted, ramped, early, late and one_large; by default
            all.
        steps: Steps of the run from scratch at the final size, whose FLOPs are the budget of every run.
        first_fraction: First size as a part of the final one.
        scratch_budgets: Budgets of the runs from scratch, as multiples, 1 among them; by default [0.5,0.7,1,1.4].
        rewarm_steps: Steps in which new rows are warmed up, by the recipes that do so.
        validations: Validations in each run.
        val_batches: Batches of each validation, and of the measurements just before and after each growth.
        test_batches: Batches of the test split on which the end of each run is measured.
        model: Options of TokenFormer; --model.num_param_tokens and --model.num_ffn_param_tokens are the final sizes.
        data: Options of CharText, but for the corpus.
        optim: Options of the recipe of training, the same in all runs.
        trainer: Options of Lightning's Trainer, such as --trainer.accelerator, --trainer.devices, --trainer.precision.
        out: Folder of the runs and of study.json, growth_study.md and growth_study.csv.
        workers: Runs side by side; by default one a GPU, else one a core.
        print_commands: Print the commands of all runs that are not done, and start none.

    Returns:
        0, or 1 if a run failed.
    """
    counts = {"steps": steps, "validations": validations, "val_batches": val_batches, "test_batches": test_batches}
    at_least_one(workers=workers, **counts)
    texts, all_seeds = unique("corpora", corpora or CORPORA), unique_seeds(seeds or [1, 2, 3])
    names, budgets = chosen(recipes), sorted(unique("scratch_budgets", scratch_budgets or [0.5, 0.7, 1.0, 1.4]))
    check_amounts(first_fraction, budgets, rewarm_steps)
    if not print_commands:
        announce(f"growth-study: {len(texts) * len(all_seeds) * (len(names) + len(budgets) + 1)} runs in {out}")
    check_place_and_trainer(out, trainer, print_commands, HELP)
    groups = {"model": model, "data": data, "optim": optim, "trainer": trainer}
    scale = scale_of(groups, first_fraction, scratch_budgets=tuple(budgets), rewarm_steps=rewarm_steps, **counts)
    plan = whole_plan(scale, texts, all_seeds, names)
    options = {"scale": asdict(scale), "corpora": corpora, "seeds": seeds, "recipes": recipes}
    study = Study("growth-study", command_line(), options, plan)
    return conduct(study, out, workers, print_commands, conclude)


def conclude(study: Study, out: Path, console: Any) -> None:
    """Find out what the runs say, and report it."""
    from app.growth_study.findings import recipe_outcomes
    from app.growth_study.report import report_growth

    outcomes = recipe_outcomes(study)
    study.findings = {"rows": [outcome.plain() for outcome in outcomes]}
    report_growth(study, outcomes, out, console)


# Options --------------------------------------------------------------------------------------------------------------


def chosen(recipes: Sequence[str] | None) -> list[str]:
    """The recipes; ValueError for one that does not exist."""
    for name in recipes or ():
        check_known("--recipes", "recipe", name, RECIPES)
    return unique("recipes", recipes or list(RECIPES))


def check_amounts(first_fraction: float, budgets: Sequence[float], rewarm_steps: int) -> None:
    """Raise ValueError, naming the option, for an amount out of its range."""
    if rewarm_steps < 0:
        raise ValueError(f"--rewarm_steps is {rewarm_steps}; it must be 0 (off) or more")
    if not 0 < first_fraction < 1:
        raise ValueError(f"--first_fraction is {first_fraction}; it must be between 0 and 1")
    if min(budgets) <= 0 or 1 not in budgets:
        raise ValueError(f"--scratch_budgets {list(budgets)} must be above 0 and hold 1, the budget of the grown runs")


def scale_of(groups: Mapping[str, OptionGroup], first_fraction: float, **amounts: Any) -> Scale:
    """The size of the study; ValueError, naming the option, where one will not do."""
    from datamodules import CharText
    from models import TokenFormer
    from models.optim import Optim

    kinds = {"model": TokenFormer, "data": CharText, "optim": Optim}
    model, data, optim = (parsed(kind, name, groups[name], HELP) for name, kind in kinds.items())
    TokenFormer(vocab_size=2, **model)
    Optim(**optim)
    first = {group: max(1, round(first_fraction * model[group])) for group in GROUPS}
    if any(first[group] >= model[group] for group in GROUPS):
        raise ValueError(f"--first_fraction {first_fraction}: the first sizes {first} are the final ones already")
    return Scale(model, data, optim, groups["trainer"].options, first, **amounts)


def whole_plan(scale: Scale, corpora: Sequence[str], seeds: Sequence[int], names: Sequence[str]) -> list[Planned]:
    """All runs; ValueError if a text cannot be read, or a stage would be too short."""
    from datamodules import CharText
    from datamodules.corpora import load_corpus

    labels = {corpus: Path(corpus).stem for corpus in corpora}
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"--corpora {list(corpora)}: two have the same name; rename a file")
    plan: list[Planned] = []
    for corpus, label in labels.items():
        text = CharText(corpus=corpus, **scale.data)
        text.corpus = load_corpus(corpus, text.data_dir, "--corpora")
        text.check()
        plan += plan_corpus(scale, corpus, label, text.vocab_size, seeds, names)
    return plan
