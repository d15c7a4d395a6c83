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
from app.cli.mistakes import check_known
from app.growth_study.arms import Design, num_runs
from app.growth_study.recipes import CHAIN, DEEPER, OTHERS
from app.output.progress import announce
from app.study.conduct import OURS, check_place_and_trainer, conduct, parsed
from app.study.study import Study

DEFAULTS: Mapping[str, list[Any]] = {
    "sizes": [1.0, 2.0, 4.0, 8.0], "depths": [2, 4], "shares": [0.1, 0.03, 0.05, 0.2, 0.4],
    "chain_shares": [0.15, 0.2, 0.3], "recipes": list(OTHERS), "scratch_budgets": [0.5, 2.0],
    "learning_rates": [0.25, 0.5, 1.0, 2.0, 4.0], "seeds": [1, 2, 3, 4, 5],
}  # fmt: skip
QUESTIONS = {"depths": DEEPER, "chain_shares": CHAIN, "recipes": "recipes"}  # by the option that has their values
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
    questions: list[str] | None = None,
    sizes: list[float] | None = None,
    depths: list[int] | None = None,
    shares: list[float] | None = None,
    chain_shares: list[float] | None = None,
    recipes: list[str] | None = None,
    scratch_budgets: list[float] | None = None,
    learning_rates: list[float] | None = None,
    seeds: list[int] | None = None,
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
        questions: Some of layers, chain and recipes, which are asked beside the final sizes; by default all.
        sizes: Final sizes, as multiples of the parameter tokens of --model; by default [1,2,4,8]. Other shares and
            recipes are tried at the first.
        depths: Final depths, as multiples of --model.num_layers; by default [2,4].
        shares: Parts of the FLOPs spent at half the size, or at the depth of --model, before the growth; the first is
            that of all sizes, the others of one. By default [0.1,0.03,0.05,0.2,0.4].
        chain_shares: Parts spent at each size of a chain that doubles up to the largest; by default [0.15,0.2,0.3].
        recipes: Some of zero_keys, ramped, published, asymmetric, dropped, cosine, exact_layers, once and one_large.
        scratch_budgets: Budgets of further runs from scratch, multiples of --flops; by default [0.5,2]; [1] for none.
        learning_rates: Multiples of --optim.learning_rate, of which validation chooses one for each size, from scratch
            and grown alike; by default [0.25,0.5,1,2,4].
        seeds: Seeds of data and models but for 0, which chooses; by default [1,2,3,4,5].
        val_batches: Batches of each validation, and of the measurements just before and after each growth.
        test_batches: Batches of the test split on which the end of each run is measured.
        model: Options of TokenFormer; its parameter tokens and layers are the reference that sizes are multiples of.
        data: Options of CharText.
        optim: Options of the recipe of training, the same in all runs; a re-warm is as long as the warm-up.
        trainer: Options of Lightning's Trainer, such as --trainer.accelerator, --trainer.devices, --trainer.precision.
        out: Folder of the runs and of study.json, growth_study.md with its figures, and growth_study.csv.
        workers: Runs side by side; by default one a GPU, else one a core.
        print_commands: Print the commands of the runs that can be started, and start none; print again when they ended.

    Returns:
        0, or 1 if a run failed.
    """
    at_least_one(workers=workers, val_batches=val_batches, test_batches=test_batches)
    asked = {"sizes": sizes, "depths": depths, "shares": shares, "chain_shares": chain_shares, "recipes": recipes}
    asked |= {"scratch_budgets": scratch_budgets, "learning_rates": learning_rates, "seeds": seeds}
    groups = {"model": model, "data": data, "optim": optim, "trainer": trainer}
    design = design_of(flops, questions, asked)
    return carry_out(design, groups, (val_batches, test_batches), out, workers, print_commands)


def design_of(flops: float, questions: list[str] | None, asked: Mapping[str, list[Any] | None]) -> Design:
    """What is asked, in numbers; ValueError, naming the option, for what cannot be."""
    named = unique("questions", list(QUESTIONS.values()) if questions is None else questions)
    for name in named:
        check_known("--questions", "question", name, QUESTIONS.values())
    values: dict[str, list[Any]] = {}
    for option, given in asked.items():
        chosen = DEFAULTS[option] if given is None else given
        values[option] = list(chosen) if option == "chain_shares" else unique(option, chosen)
        if option in QUESTIONS and QUESTIONS[option] not in named:
            if given is not None:
                raise ValueError(f"--{option} {given} is of no use without {QUESTIONS[option]} in --questions {named}")
            values[option] = []
    unique_seeds(values["seeds"])
    if asked["recipes"] is None:
        values["recipes"] = [name for name in values["recipes"] if OTHERS[name].needs in ("", *named)]
    return Design(flops, **values)


def carry_out(
    design: Design, groups: Mapping[str, OptionGroup], batches: tuple[int, int], out: Path, workers: int | None,
    print_commands: bool,
) -> int:  # fmt: skip
    """Train all that the design asks for; returns the exit code."""
    if not print_commands:
        announce(f"growth-study: {num_runs(design)} runs in {out}")
    from app.growth_study.runs import arms_of, extend

    check_place_and_trainer(out, groups["trainer"], print_commands, HELP)
    setting = setting_of(groups, *batches)
    arms = arms_of(design, setting)
    options = {"design": asdict(design), "setting": setting.plain()}
    study = Study("growth-study", command_line(), options, plan=[])
    return conduct(study, out, workers, print_commands, conclude, lambda study: extend(study, design, setting, arms))


def setting_of(groups: Mapping[str, OptionGroup], val_batches: int, test_batches: int) -> Any:
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
    text.corpus = load_corpus(text.corpus_given, text.data_dir, "--data.corpus")
    text.check()
    length, typed = len(text.parts["train"]), groups["trainer"].options
    return Setting(model, data, optim, typed, text.vocab_size, length, val_batches, test_batches)


def conclude(study: Study, out: Path, console: Any) -> None:
    """Find out what the runs say, and report it."""
    from app.growth_study.findings import measured_runs, table_rows
    from app.growth_study.report import report_growth

    rows = table_rows(study)
    study.findings = {"chosen": measured_runs(study), "rows": [row.plain() for row in rows]}
    report_growth(study, rows, out, console)
