"""The runs of a growth study, each an ordinary fit: options of an arm, and what the records so far let be planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from app.growth_study.arms import TUNING_SEED, Arm, Design, Size, all_arms, labels_of
from app.growth_study.recipes import JUMP, RECIPES
from app.study.rates import RUNG, SEARCH, Rates, rates_of
from app.study.study import Planned, Study, as_options

GROUPS = ("num_param_tokens", "num_ffn_param_tokens")
LAYERS = "num_layers"
VALIDATIONS = 20  # of a run that counts


@dataclass(frozen=True)
class Setting:
    """What all runs have in common: plain values of the verb's options, checked.

    Attributes:
        model: Options of TokenFormer, with the sizes of the reference.
        data: Options of CharText.
        optim: Options of the recipe of training, at the learning rates that factors multiply.
        trainer: What is passed on to every fit, as typed.
        vocab_size: Number of characters.
        train_characters: Length of the training text.
        val_batches: Batches of each validation, and of the measurement before and after growth.
        test_batches: Batches of the test split that the end of a run is measured on.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    optim: dict[str, Any]
    trainer: tuple[str, ...]
    vocab_size: int
    train_characters: int
    val_batches: int
    test_batches: int
    known: dict[Size, tuple[float, int]] = field(default_factory=dict, compare=False, repr=False)

    def sizes(self, size: Size) -> dict[str, int]:
        """Options of the model at a size."""
        tokens = {group: round(size.tokens * self.model[group]) for group in GROUPS}
        return tokens | {LAYERS: size.depth * self.model[LAYERS]}

    def measured(self, size: Size) -> tuple[float, int]:
        """FLOPs of an optimizer step, as a run counts them, and the number of parameters."""
        if size not in self.known:
            self.known[size] = measure(self.model | self.sizes(size), self.vocab_size, self.data)
        return self.known[size]

    def cost(self, size: Size) -> float:
        """FLOPs of an optimizer step."""
        return self.measured(size)[0]

    def plain(self) -> dict[str, Any]:
        """As it stands in the study's file."""
        return {name: value for name, value in vars(self).items() if name != "known"}


def measure(model: dict[str, Any], vocab_size: int, data: dict[str, Any]) -> tuple[float, int]:
    """FLOPs of an optimizer step of a TokenFormer, and its number of parameters."""
    import torch

    from models import TokenFormer
    from models.base import TRAINING_FLOPS

    with torch.device("meta"):
        built = TokenFormer(vocab_size=vocab_size, **model)
    flops = TRAINING_FLOPS * built.flops_per_token(data["seq_len"]) * data["seq_len"] * data["batch_size"]
    return float(flops), built.num_parameters()


# The schedule ---------------------------------------------------------------------------------------------------------


def decay_begins(steps: int, *, schedule: str, warmup: int, decay_ratio: float) -> int:
    """The step until which a run of so many has the learning rate of a longer one: where wsd begins to decay."""
    return round(warmup + (1 - decay_ratio) * (steps - warmup)) if schedule == "wsd" else warmup


def end_of(step: int, *, schedule: str, warmup: int, decay_ratio: float) -> int:
    """Steps of the run whose learning rate begins to decay after this step; on another schedule it ends there."""
    return round(warmup + (step - warmup) / (1 - decay_ratio)) if schedule == "wsd" and decay_ratio < 1 else step


def arms_of(design: Design, setting: Setting) -> list[Arm]:
    """All arms of the study; ValueError if one cannot be trained."""
    for size in design.scratch_sizes:
        if min(setting.sizes(size).values()) < 1:
            raise ValueError(f"--sizes {design.sizes}: {size.name} would have {setting.sizes(size)}; give larger sizes")
    optim = setting.optim
    schedule = {"schedule": optim["schedule"], "warmup": optim["warmup_steps"], "decay_ratio": optim["decay_ratio"]}
    arms = all_arms(design, setting.cost, partial(end_of, **schedule), partial(decay_begins, **schedule))
    for arm in arms:
        check_sizes(arm, setting)
        check_stages(arm, setting, design.flops)
    return arms


def check_sizes(arm: Arm, setting: Setting) -> None:
    """Raise ValueError unless every stage is larger than the one before."""
    stages = [setting.sizes(size) for size in arm.sizes]
    for small, large in pairwise(stages):
        if small == large or any(small[name] > large[name] for name in small):
            raise ValueError(f"--sizes: {arm.name} would grow from {small} to {large}; give larger sizes")


def check_stages(arm: Arm, setting: Setting, flops: float) -> None:
    """Raise ValueError if a stage has no step, or one that warms up is too short for that."""
    recipe, warmup = RECIPES.get(arm.recipe), setting.optim["warmup_steps"]
    least = [0] * len(arm.steps)
    if recipe:
        later = warmup * (recipe.rewarm or recipe.restart)
        least = [warmup * recipe.restart, *[later] * (len(arm.steps) - 1)]
    for number, (length, needed) in enumerate(zip(arm.steps, least, strict=True), start=1):
        if length <= needed:
            raise ValueError(
                f"--flops {flops:g}: stage {number} of {arm.name} would have {length} steps, not more than the "
                f"{needed} in which it warms up (--optim.warmup_steps); give more"
            )
    if sum(arm.steps) <= warmup:
        raise ValueError(
            f"--flops {flops:g}: {arm.name} would have {sum(arm.steps)} steps, not more than the {warmup} of "
            "--optim.warmup_steps; give more, or a shorter warm-up"
        )


# Options of a run -----------------------------------------------------------------------------------------------------


def fit_options(arm: Arm, setting: Setting, factor: float, seed: int, tries: bool) -> list[str]:
    """Options of one fit; one that only tries a learning rate is validated at its end alone."""
    steps, recipe = sum(arm.steps), RECIPES.get(arm.recipe)
    optim = setting.optim | (dict(recipe.optim) if recipe else {})
    rates = {name: rate for name, rate in setting.optim.items() if name.endswith("learning_rate") and rate is not None}
    optim |= {name: float(f"{factor * rate:.6g}") for name, rate in rates.items()}
    trainer = {
        "max_steps": steps,
        "val_check_interval": steps if tries else max(1, steps // VALIDATIONS),
        "limit_val_batches": setting.val_batches,
        "limit_test_batches": setting.test_batches,
    }
    return [
        "--model=TokenFormer", *as_options("model", setting.model | setting.sizes(arm.sizes[0])),
        "--data=CharText", *as_options("data", setting.data),
        *as_options("optim", optim), "--samples.max_new_tokens=0", f"--seed_everything={seed}",
        *as_options("trainer", trainer), *setting.trainer, *growth_options(arm, setting),
    ]  # fmt: skip


def growth_options(arm: Arm, setting: Setting) -> list[str]:
    """What of a fit's options is of its growth; none of one that does not grow."""
    if len(arm.sizes) == 1:
        return []
    recipe, stages = RECIPES[arm.recipe], [setting.sizes(size) for size in arm.sizes]
    deepens = arm.sizes[-1].depth > arm.sizes[0].depth
    names, how = ((LAYERS,), recipe.layers) if deepens else (GROUPS, recipe.tokens)
    growth: dict[str, Any] = {"steps": arm.growths} | {name: [sizes[name] for sizes in stages[1:]] for name in names}
    growth |= {**how, "rewarm_steps": setting.optim["warmup_steps"] if recipe.rewarm else 0}
    restart = as_options("optim", {"restart_steps": arm.growths}) if recipe.restart else []
    jump = [f"--trainer.callbacks+={JUMP}", f"--trainer.callbacks.num_batches={setting.val_batches}"]
    return [*as_options("growth", growth), *restart, *jump]


# The plan -------------------------------------------------------------------------------------------------------------


def planned(arm: Arm, setting: Setting, factor: float, seed: int, labels: dict[str, Any]) -> Planned:
    """One run of an arm, which has these labels beside the arm's."""
    tries = RUNG in labels
    place = f"lr{factor:g}" if tries else f"s{seed}"
    of_arm = labels_of(arm, [setting.measured(size)[1] for size in arm.sizes])
    of_arm["shared"] = shared_flops(arm, setting.cost)
    labels = of_arm | {"factor": factor, "seed": seed} | labels
    return Planned(f"{arm.name}-{place}", labels, fit_options(arm, setting, factor, seed, tries), test=not tries)


def shared_flops(arm: Arm, cost: Callable[[Size], float]) -> float:
    """FLOPs of the steps that an arm has in common with the chain."""
    left, flops = arm.shared, 0.0
    for steps, size in zip(arm.steps, arm.sizes, strict=True):
        flops, left = flops + min(left, steps) * cost(size), max(0, left - steps)
    return flops


def tried(arm: Arm, design: Design, setting: Setting) -> list[Planned]:
    """Runs that choose an arm's learning rate; none where there is but one."""
    factors = design.learning_rates if arm.tunes and len(design.learning_rates) > 1 else []
    return [planned(arm, setting, factor, TUNING_SEED, {RUNG: 1}) for factor in sorted(factors)]


def chosen_rates(study: Study, tries: Sequence[Planned], factors: Sequence[float]) -> Rates | None:
    """What they chose; None as long as one is not done."""
    if not tries:
        return Rates([factors[0]], factors[0])
    runs = [run for run in study.runs(**{RUNG: 1}) if run.labels["arm"] == tries[0].labels["arm"]]
    return rates_of(runs) if len(runs) == len(tries) else None


def extend(study: Study, design: Design, setting: Setting, arms: Sequence[Arm]) -> None:
    """Plan all runs that the study's records decide: first those that choose, then by arms those that count."""
    tries = {arm.name: tried(arm, design, setting) for arm in arms if arm.tunes}
    study.plan = [run for runs in tries.values() for run in runs]
    rates = {name: chosen_rates(study, runs, design.learning_rates) for name, runs in tries.items()}
    for arm in arms:
        if (found := rates[arm.rate_of]) is None:
            continue
        search = found.plain() | {"of": arm.rate_of}
        factor = min(found.tried) if found.best is None else found.best
        study.plan += [planned(arm, setting, factor, seed, {SEARCH: search}) for seed in arm.seeds]
