"""`python -m app growth-study`: what does growing save? Grown models against training from scratch, at equal FLOPs.

The answer is a curve: compute saved or lost against the final size, and against when it is grown to. Every run spends
the same FLOPs, all stages counted. What is needed of PyTorch is imported by the functions that use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.cli.checks import at_least_one, unique, unique_seeds
from app.cli.groups import OptionGroup
from app.cli.invocation import command_line
from app.growth_study.arms import Design, num_runs
from app.growth_study.recipes import OTHERS
from app.output.progress import announce
from app.study.conduct import OURS, check_place_and_trainer, conduct, parsed
from app.study.study import Study

HELP = "python -m app growth-study --help"
MODEL = {
    "d_model": 64, "num_layers": 1, "num_heads": 4, "rope_base": 100.0, "num_param_tokens": 64,
    "num_ffn_param_tokens": 256,
}  # fmt: skip
DATA = {"corpus": "python-stdlib", "seq_len": 128, "batch_size": 16}
OPTIM = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 50, "schedule": "wsd", "decay_ratio": 0.25}
MODEL_OPTIONS = OptionGroup(kind="TokenFormer", defaults=MODEL, ours=frozenset({"vocab_size"}))
DATA_OPTIONS = OptionGroup(kind="CharText", defaults=DATA, ours=frozenset({"seed"}))
OPTIM_OPTIONS = OptionGroup(defaults=OPTIM, ours=frozenset({"restart_steps"}))
TRAINER_OPTIONS = OptionGroup(ours=OURS | {"limit_val_batches", "limit_test_batches"})


def growth_study(
    *,
    flops: float = 1.5e12,
    sizes: list[float] | None = None,
    depths: list[int] | None = None,
    share: float = 0.1,
    chain_shares: list[float] | None = None,
    shares: list[float] | None = None,
    studied_size: float | None = None,
    recipes: list[str] | None = None,
    tuned_recipes: list[str] | None = None,
    scratch_budgets: list[float] | None = None,
    learning_rates: list[float] | None = None,
    seeds: list[int] | None = None,
    few_seeds: int = 3,
    tuning_seed: int = 0,
    rewarm_steps: int = 50,
    validations: int = 20,
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
    """Measure what growing saves at equal FLOPs: by final size, by when, by recipe, for a family of sizes, at any time.

    Args:
        flops: Budget of training FLOPs of each run, all stages counted.
        sizes: Final sizes, as multiples of the parameter tokens of --model; by default [1,2,4,8].
        depths: Final depths, as multiples of --model.num_layers; by default [2,4]. [] for none.
        share: Part of the FLOPs that is spent at half the size, or at the depth of --model, before the growth.
        chain_shares: Parts spent at each smaller size of the chain that doubles up to the largest size; by default
            [0.15,0.2,0.3]. [] for no chain: the largest size is grown as the others.
        shares: Other values of --share to try at one size and depth; by default [0.03,0.05,0.1,0.2,0.4]. [] for none.
        studied_size: One of --sizes, at which --shares and --recipes are tried; by default the smallest.
        recipes: Some of zero_keys, ramped, published, asymmetric, dropped, cosine, exact_layers, once and one_large; by
            default all. [] for none.
        tuned_recipes: Those of --recipes that have a learning rate of their own and all seeds; by default [zero_keys].
        scratch_budgets: Budgets of further runs from scratch, as multiples of --flops, so that a loss is worth FLOPs;
            by default [0.5,2]. [] for none.
        learning_rates: Multiples of the learning rate of --optim, of which validation chooses one for each size, from
            scratch and grown alike; by default [0.25,0.5,1,2,4].
        seeds: Seeds of data and models, none of which chooses anything; by default [1,2,3,4,5].
        few_seeds: How many of them measure budgets, shares, recipes that are not tuned, and the family.
        tuning_seed: Seed of data and models that chooses learning rates, none of --seeds.
        rewarm_steps: Steps in which new rows are warmed up, by the recipes that do so.
        validations: Validations in each run that counts.
        val_batches: Batches of each validation, and of the measurements just before and after each growth.
        test_batches: Batches of the test split on which the end of each run is measured.
        model: Options of TokenFormer; its parameter tokens and layers are the reference that sizes are multiples of.
        data: Options of CharText.
        optim: Options of the recipe of training, the same in all runs.
        trainer: Options of Lightning's Trainer, such as --trainer.accelerator, --trainer.devices, --trainer.precision.
        out: Folder of the runs and of study.json, growth_study.md with its figures, and growth_study.csv.
        workers: Runs side by side; by default one a GPU, else one a core.
        print_commands: Print the commands of the runs that can be started, and start none. What the learning rates
            decide comes when their runs are done: print again.

    Returns:
        0, or 1 if a run failed.
    """
    counts = {"validations": validations, "val_batches": val_batches, "test_batches": test_batches}
    at_least_one(workers=workers, **counts)
    if rewarm_steps < 0:
        raise ValueError(f"--rewarm_steps is {rewarm_steps}; it must be 0 (off) or more")
    all_sizes = unique("sizes", [1.0, 2.0, 4.0, 8.0] if sizes is None else sizes)
    names = list(OTHERS) if recipes is None else any_number("recipes", recipes)
    design = Design(
        flops,
        all_sizes,
        any_number("depths", [2, 4] if depths is None else depths),
        share,
        [0.15, 0.2, 0.3] if chain_shares is None else list(chain_shares),
        any_number("shares", [0.03, 0.05, 0.1, 0.2, 0.4] if shares is None else shares),
        min(all_sizes) if studied_size is None else studied_size,
        names,
        tuned(names, tuned_recipes),
        any_number("scratch_budgets", [0.5, 2.0] if scratch_budgets is None else scratch_budgets),
        unique("learning_rates", [0.25, 0.5, 1.0, 2.0, 4.0] if learning_rates is None else learning_rates),
        unique_seeds([1, 2, 3, 4, 5] if seeds is None else seeds),
        few_seeds,
        tuning_seed,
    )
    if not print_commands:
        announce(f"growth-study: {num_runs(design)} runs in {out}")
    check_place_and_trainer(out, trainer, print_commands, HELP)
    groups = {"model": model, "data": data, "optim": optim, "trainer": trainer}
    return carry_out(design, groups, counts | {"rewarm_steps": rewarm_steps}, out, workers, print_commands)


def any_number(option: str, values: list[Any]) -> list[Any]:
    """The values, none of them twice; there may be none."""
    return unique(option, values) if values else []


def tuned(recipes: list[str], given: list[str] | None) -> list[str]:
    """The recipes with learning rates of their own: those given, or zero keys, if it is there."""
    if given is None:
        return [name for name in recipes if name == "zero_keys"]
    return any_number("tuned_recipes", given)


def carry_out(
    design: Design, groups: Mapping[str, OptionGroup], counts: Mapping[str, int], out: Path, workers: int | None,
    print_commands: bool,
) -> int:  # fmt: skip
    """Train all that the design asks for; returns the exit code."""
    from app.growth_study.runs import arms_of, extend

    setting = setting_of(groups, counts)
    arms = arms_of(design, setting)
    options = {"design": asdict(design), "setting": setting.plain()}
    study = Study("growth-study", command_line(), options, plan=[])
    return conduct(study, out, workers, print_commands, conclude, lambda study: extend(study, design, setting, arms))


def setting_of(groups: Mapping[str, OptionGroup], counts: Mapping[str, int]) -> Any:
    """What all runs have in common; ValueError, naming the option, where something will not do."""
    from app.growth_study.runs import Setting
    from datamodules import CharText
    from datamodules.corpora import load_corpus
    from models import TokenFormer
    from models.optim import Optim

    kinds = {"model": TokenFormer, "data": CharText, "optim": Optim}
    model, data, optim = (parsed(kind, name, groups[name], HELP) for name, kind in kinds.items())
    TokenFormer(vocab_size=2, **model)
    Optim(**optim)
    text = CharText(**data)
    text.corpus = load_corpus(text.corpus_name, text.data_dir, "--data.corpus")
    text.check()
    length = len(text.parts["train"])
    return Setting(model, data, optim, groups["trainer"].options, text.vocab_size, length, **counts)


def conclude(study: Study, out: Path, console: Any) -> None:
    """Find out what the runs say, and report it."""
    from app.growth_study.findings import measured_runs, table_rows
    from app.growth_study.report import report_growth

    rows = table_rows(study)
    study.findings = {"chosen": measured_runs(study), "rows": [row.plain() for row in rows]}
    report_growth(study, rows, out, console)
