"""What a growth study compares: recipes of growth, and how many steps each size may take of one budget of FLOPs.

The budget is that of `--steps` steps at the final size, trained from scratch. A grown run spends shares of it at the
sizes of its stages, so that all stages together cost what the run from scratch costs, but for less than a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.study.study import Planned, as_options

Sizes = dict[str, int]
GROUPS = ("num_param_tokens", "num_ffn_param_tokens")
JUMP = "callbacks.growth_jump.JumpAtGrowth"
SCRATCH, SMALL = "scratch", "small"
EXACT, PUBLISHED = "exact", "published"  # recipes whose outcome reports tell in words


@dataclass(frozen=True)
class Recipe:
    """How a model grows.

    Attributes:
        text: What it is, for the table's legend.
        shares: Shares of the budget's FLOPs that the stages spend; sizes rise evenly from the first to the final one.
        init: How new rows start, as in `--growth.init`.
        tau: What becomes of the scale, as in `--growth.tau`.
        carry: What becomes of the optimizer's moments, as in `--growth.carry`.
        rewarm: Whether new rows are warmed up.
        restart: Whether warm-up and schedule of the learning rate begin anew at each growth.
    """

    text: str
    shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    init: str = "zero_keys"
    tau: str = "frozen"
    carry: str = "per_row"
    rewarm: bool = True
    restart: bool = False


RECIPES = {
    EXACT: Recipe("zero keys, tau frozen, optimizer state carried, new rows warmed up; three growths, at 25/50/75 %"),
    PUBLISHED: Recipe(
        "as the published code: random rows, tau = sqrt n, optimizer and schedule restarted at each growth, no re-warm",
        init="random", tau="sqrt_n", carry="reset", rewarm=False, restart=True,
    ),
    "dropped": Recipe("exact, but all optimizer state dropped at each growth", carry="reset"),
    "no_rewarm": Recipe("exact, but new rows at the full learning rate at once", rewarm=False),
    "restarted": Recipe("exact, but warm-up and schedule of the learning rate begin anew at each growth", restart=True),
    "ramped": Recipe("exact, and tau then rises to sqrt n within the re-warm", tau="ramped"),
    "early": Recipe("exact, but growths at 15/30/45 %", shares=(0.15, 0.15, 0.15, 0.55)),
    "late": Recipe("exact, but growths at 55/70/85 %", shares=(0.55, 0.15, 0.15, 0.15)),
    "one_large": Recipe("exact, but one growth, at 50 %", shares=(0.5, 0.5)),
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large the study is: plain values of the verb's options, checked.

    Attributes:
        model: Options of TokenFormer, the sizes being the final ones.
        data: Options of CharText but for the corpus.
        optim: Options of the recipe of training.
        trainer: What is passed on to every fit, as typed.
        first: Sizes before the first growth.
        steps: Steps of the run from scratch that spends the budget.
        scratch_budgets: Budgets of the runs from scratch, as multiples of the budget.
        rewarm_steps: Steps in which recipes that do so warm new rows up.
        validations: Validations in each run.
        val_batches: Batches of each validation, and of the measurement before and after growth.
        test_batches: Batches of the test split that the end of a run is measured on.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    optim: dict[str, Any]
    trainer: tuple[str, ...]
    first: Sizes
    steps: int
    scratch_budgets: tuple[float, ...]
    rewarm_steps: int
    validations: int
    val_batches: int
    test_batches: int

    @property
    def final(self) -> Sizes:
        """Sizes of the run from scratch."""
        return {group: self.model[group] for group in GROUPS}

    def sizes(self, num_stages: int) -> list[Sizes]:
        """Sizes of each stage, in equal steps from the first to the final ones."""
        parts = [stage / (num_stages - 1) for stage in range(num_stages)]
        return [
            {group: round(small + part * (self.final[group] - small)) for group, small in self.first.items()}
            for part in parts
        ]


def stage_steps(flops: Sequence[float], shares: Sequence[float], budget: float) -> list[int]:
    """Steps of each stage, given what one costs there: all but the last by their shares, the last what is left.

    The sum over the stages differs from the budget by at most half a step of the last.
    """
    steps = [round(share * budget / each) for share, each in zip(shares[:-1], flops[:-1], strict=True)]
    spent = sum(number * each for number, each in zip(steps, flops[:-1], strict=True))
    return [*steps, round((budget - spent) / flops[-1])]


def cost(scale: Scale, sizes: Sizes, vocab_size: int) -> tuple[float, int]:
    """FLOPs of an optimizer step, as a run counts them, and the number of parameters."""
    import torch

    from models import TokenFormer
    from models.base import TRAINING_FLOPS

    with torch.device("meta"):
        model = TokenFormer(vocab_size=vocab_size, **(scale.model | sizes))
    seq_len: int = scale.data["seq_len"]
    flops = TRAINING_FLOPS * model.flops_per_token(seq_len) * seq_len * scale.data["batch_size"]
    return float(flops), model.num_parameters()


def fit_options(scale: Scale, corpus: str, seed: int, sizes: Sizes, steps: int) -> list[str]:
    """Options of one fit without growth."""
    trainer = {
        "max_steps": steps,
        "val_check_interval": max(1, steps // scale.validations),
        "limit_val_batches": scale.val_batches,
        "limit_test_batches": scale.test_batches,
    }
    return [
        "--model=TokenFormer", *as_options("model", scale.model | sizes),
        "--data=CharText", *as_options("data", {"corpus": corpus} | scale.data),
        *as_options("optim", scale.optim), "--samples.max_new_tokens=0", f"--seed_everything={seed}",
        *as_options("trainer", trainer), *scale.trainer,
    ]  # fmt: skip


def growth_options(scale: Scale, recipe: Recipe, stages: Sequence[Sizes], steps: Sequence[int]) -> list[str]:
    """Options of a fit that grows; `stages` and `steps` are those of all stages, the first among them."""
    begins = [sum(steps[:number]) for number in range(1, len(steps))]
    growth = {"steps": begins} | {group: [sizes[group] for sizes in stages[1:]] for group in GROUPS}
    growth |= {"init": recipe.init, "tau": recipe.tau, "carry": recipe.carry}
    growth["rewarm_steps"] = scale.rewarm_steps if recipe.rewarm else 0
    restart = as_options("optim", {"restart_steps": begins}) if recipe.restart else []
    jump = [f"--trainer.callbacks+={JUMP}", f"--trainer.callbacks.num_batches={scale.val_batches}"]
    return [*as_options("growth", growth), *restart, *jump]


def check_stages(name: str, steps: Sequence[int], scale: Scale) -> None:
    """Raise ValueError if a stage is too short to warm up in."""
    warmup = max(scale.optim["warmup_steps"], scale.rewarm_steps)
    for number, length in enumerate(steps, start=1):
        if length <= warmup:
            raise ValueError(
                f"--steps {scale.steps}: stage {number} of {name} would have {length} steps, not more than the "
                f"{warmup} of --optim.warmup_steps and --rewarm_steps; give more steps, or a shorter warm-up"
            )


def plan_corpus(
    scale: Scale, corpus: str, label: str, vocab_size: int, seeds: Sequence[int], names: Sequence[str]
) -> list[Planned]:
    """All runs on one corpus, a seed after the other; ValueError if a stage would be too short."""
    small, large = (cost(scale, sizes, vocab_size) for sizes in (scale.first, scale.final))
    budget = scale.steps * large[0]
    whole = [(f"{SCRATCH}-{b:g}", SCRATCH, b, scale.final, round(b * scale.steps)) for b in scale.scratch_budgets]
    whole.append((SMALL, SMALL, 1.0, scale.first, round(budget / small[0])))
    runs: list[Planned] = []
    for seed in seeds:
        for name, kind, part, sizes, steps in whole:
            check_stages(name, [steps], scale)
            parameters = [(small if kind == SMALL else large)[1]]
            labels = {"corpus": label, "recipe": kind, "budget": part, "seed": seed}
            labels |= {"stages": [steps], "parameters": parameters}
            runs.append(Planned(f"{label}-{name}-s{seed}", labels, fit_options(scale, corpus, seed, sizes, steps)))
        for name in names:
            recipe = RECIPES[name]
            stages = scale.sizes(len(recipe.shares))
            costs = [cost(scale, sizes, vocab_size) for sizes in stages]
            steps_S = stage_steps([flops for flops, _ in costs], recipe.shares, budget)
            check_stages(name, steps_S, scale)
            labels = {"corpus": label, "recipe": name, "budget": 1.0, "seed": seed}
            labels |= {"stages": steps_S, "parameters": [number for _, number in costs]}
            chosen = fit_options(scale, corpus, seed, scale.first, sum(steps_S))
            chosen += growth_options(scale, recipe, stages, steps_S)
            runs.append(Planned(f"{label}-{name}-s{seed}", labels, chosen))
    return runs
