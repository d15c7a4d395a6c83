"""What a growth study trains, as a function of its options and of what a step costs at each size.

Every arm spends a known part of one budget of FLOPs. A grown arm spends shares of it at the sizes of its stages, so
that all stages together cost what training from scratch costs, but for less than a step:

    sizes       every final size from scratch and grown, by parameter tokens and by layers: what growing saves
    budgets     from scratch at other budgets, so that a loss is worth FLOPs
    shares      one size grown after other shares of the FLOPs: when
    recipes     one size grown by other recipes: how
    family      the sizes of the chain, each branched off where the chain outgrows it: what one chain gives

The learning rate of each arm is tuned, or is that of the arm whose question it shares.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.cli.mistakes import check_known
from app.growth_study.recipes import BRANCH, CHAIN, DEEPER, GROWN, ONCE, ONE_LARGE, OTHERS, RECIPES, SCRATCH

SIZES, BUDGETS, SHARES, OF_RECIPES, FAMILY = "sizes", "budgets", "shares", "recipes", "family"  # what arms answer


class Size(NamedTuple):
    """Multiples of the reference: of its parameter tokens, and of its layers."""

    tokens: float = 1.0
    depth: int = 1

    @property
    def name(self) -> str:
        """In words that fit into the name of a folder."""
        return f"tokens{self.tokens:g}" if self.depth == 1 else f"layers{self.depth}"


Cost = Callable[[Size], float]  # FLOPs of an optimizer step
TUNING_SEED = 0  # chooses learning rates, and is never reported
FEW = 3  # of the seeds measure what is beside the main question


@dataclass(frozen=True)
class Design:
    """What is asked: values of the verb's options; ValueError for what cannot be.

    Attributes:
        flops: The budget.
        sizes: Final sizes, as multiples of the reference's parameter tokens; shares and recipes are tried at the first.
        depths: Final depths, as multiples of its layers; empty for none.
        shares: Of the FLOPs, spent at half the size, or at the reference's depth; the first is that of all sizes.
        chain_shares: Spent at each smaller size of the chain that doubles up to the largest size; empty for no chain.
        recipes: Names of other recipes.
        scratch_budgets: Budgets of further runs from scratch, as multiples of the budget.
        learning_rates: Multiples of the learning rate, of which one is chosen.
        seeds: Those that are reported.
    """

    flops: float
    sizes: list[float]
    depths: list[int]
    shares: list[float]
    chain_shares: list[float]
    recipes: list[str]
    scratch_budgets: list[float]
    learning_rates: list[float]
    seeds: list[int]

    def __post_init__(self) -> None:
        """Refuse what is out of its range."""
        for name in self.recipes:
            check_known("--recipes", "recipe", name, OTHERS)
            has = {"": True, DEEPER: bool(self.depths), CHAIN: bool(self.chain_shares)}
            if not has[needed := OTHERS[name].needs]:
                raise ValueError(
                    f"--recipes {name} is a question of {needed}; add that to --questions, or leave it out"
                )
        above_zero(flops=[self.flops], sizes=self.sizes, scratch_budgets=self.scratch_budgets)
        above_zero(learning_rates=self.learning_rates)
        if TUNING_SEED in self.seeds:
            raise ValueError(f"--seeds {self.seeds} has {TUNING_SEED}, the seed that chooses; leave it out")
        for name, shares in (("shares", self.shares), ("chain_shares", self.chain_shares)):
            if not all(0 < share < 1 for share in shares):
                raise ValueError(f"--{name} {shares}: a share is between 0 and 1")
        if sum(self.chain_shares) >= 1:
            raise ValueError(f"--chain_shares {self.chain_shares} must leave a share for the largest size")
        if any(depth < 2 for depth in self.depths):
            raise ValueError(f"--depths {self.depths} are multiples of the layers to grow to; each must be at least 2")

    @property
    def chain(self) -> tuple[Size, ...]:
        """Sizes that double up to the largest; empty without a chain."""
        doublings = len(self.chain_shares)
        return tuple(Size(max(self.sizes) / 2**n) for n in range(doublings, -1, -1)) if doublings else ()

    def path(self, size: Size) -> tuple[tuple[Size, ...], list[float]]:
        """Sizes of the stages by which a size is grown to, and the shares of all but the last."""
        if self.chain and size == self.chain[-1]:
            return self.chain, self.chain_shares
        return self.once(size), self.shares[:1]

    def once(self, size: Size) -> tuple[Size, ...]:
        """From half the parameter tokens, or from the reference's depth."""
        return (Size(), size) if size.depth > 1 else (Size(size.tokens / 2), size)

    @property
    def grown_sizes(self) -> list[Size]:
        """Final sizes, by parameter tokens and by layers."""
        return [*(Size(tokens) for tokens in sorted(self.sizes)), *(Size(1.0, depth) for depth in sorted(self.depths))]

    @property
    def scratch_sizes(self) -> list[Size]:
        """The final sizes, those that grow into them by the chain, half the smallest, and the reference for depths."""
        below = {Size(min(self.sizes) / 2), *self.chain, *([Size()] if self.depths else [])}
        return sorted(below | set(self.grown_sizes), key=lambda size: (size.depth, size.tokens))


def above_zero(**values: Sequence[float]) -> None:
    """Raise ValueError naming the first option that has a value which is not above 0, or infinite."""
    for name, given in values.items():
        if not all(0 < value < float("inf") for value in given):
            raise ValueError(f"--{name} {list(given)} must be above 0")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in seed and learning rate only.

    Attributes:
        question: What it answers.
        name: Begins the names of its runs.
        recipe: How it is trained.
        sizes: Of its stages, the final one last.
        steps: Of its stages.
        budget: FLOPs as a part of the budget.
        share: Of its FLOPs, spent before it has its final size.
        rate_of: Name of the arm whose learning rate it has, which may be its own.
        seeds: Those that are reported.
        shared: Steps that it has in common with the chain.
    """

    question: str
    name: str
    recipe: str
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    budget: float
    share: float
    rate_of: str
    seeds: tuple[int, ...]
    shared: int = 0

    @property
    def tunes(self) -> bool:
        """Whether its learning rate is its own."""
        return self.rate_of == self.name

    @property
    def growths(self) -> list[int]:
        """Steps before which it grows."""
        return list(itertools.accumulate(self.steps[:-1]))


def stage_steps(flops: Sequence[float], shares: Sequence[float], budget: float) -> list[int]:
    """Steps of stages of so many FLOPs a step: all but the last by their shares, the last what is left.

    The sum over the stages differs from the budget by at most half a step of the last.
    """
    steps = [round(share * budget / each) for share, each in zip(shares, flops[:-1], strict=True)]
    spent = sum(number * each for number, each in zip(steps, flops[:-1], strict=True))
    return [*steps, round((budget - spent) / flops[-1])]


# The arms -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """Makes arms of a design."""

    design: Design
    cost: Cost

    def arm(
        self, question: str, name: str, recipe: str, sizes: tuple[Size, ...], shares: Sequence[float] = (),
        budget: float = 1.0, rate_of: str = "", few: bool = False,
    ) -> Arm:  # fmt: skip
        """An arm; its learning rate is its own unless another is named."""
        flops = [self.cost(size) for size in sizes]
        steps = tuple(stage_steps(flops, shares, budget * self.design.flops))
        seeds = tuple(self.design.seeds[: FEW if few else None])
        return Arm(question, name, recipe, sizes, steps, budget, sum(shares), rate_of or name, seeds)

    def scratch(self, size: Size) -> Arm:
        """From scratch."""
        return self.arm(SIZES, f"{size.name}-{SCRATCH}", SCRATCH, (size,))

    def shorter(self, question: str, size: Size, budget: float, name: str) -> Arm:
        """From scratch at another budget, at the learning rate that is best at that of all."""
        scratch = f"{size.name}-{SCRATCH}"
        return self.arm(question, f"{scratch}-{name}", SCRATCH, (size,), (), budget, scratch, few=True)

    def grown(self, size: Size) -> Arm:
        """By the main recipe."""
        return self.arm(SIZES, f"{size.name}-{GROWN}", GROWN, *self.design.path(size))

    def when(self, size: Size, share: float) -> Arm:
        """Grown once, after another share of the FLOPs."""
        name, sizes = f"{size.name}-{GROWN}", self.design.once(size)
        return self.arm(SHARES, f"{name}-at{share:g}", GROWN, sizes, [share], rate_of=name, few=True)

    def other(self, name: str) -> Arm:
        """By another recipe: at the studied size, or at the largest size or depth where it is a question of that."""
        design, recipe = self.design, RECIPES[name]
        if recipe.needs == CHAIN:
            size = design.chain[-1]
        else:
            size = Size(1.0, max(design.depths)) if recipe.needs == DEEPER else Size(design.sizes[0])
        sizes, shares = design.path(size)
        if name == ONCE:
            sizes, shares = design.once(size), design.shares[:1]
        elif name == ONE_LARGE:
            sizes, shares = (sizes[0], size), [sum(shares)]
        rate_of = "" if recipe.tuned else f"{size.name}-{GROWN}"
        few = not recipe.tuned
        return self.arm(OF_RECIPES, f"{size.name}-{name}", name, sizes, shares, rate_of=rate_of, few=few)

    def branches(self, chain: Arm, ends: Callable[[int], int], decays: Callable[[int], int]) -> list[Arm]:
        """The smaller sizes of the chain, each trained to its end where the chain outgrows it, and also from scratch.

        A branch has the chain's steps until its learning rate decays, which it does where the chain grows, unless that
        of the chain decays before: these steps are paid for once.

        Args:
            chain: The chain.
            ends: Steps of a run whose learning rate begins to decay after so many.
            decays: The step after which that of a run of so many steps decays.
        """
        arms, decay = [], decays(sum(chain.steps))
        for number, growth in enumerate(chain.growths, start=1):
            sizes, before = chain.sizes[:number], chain.steps[: number - 1]
            steps = (*before, ends(growth) - sum(before))
            flops = [count * self.cost(size) for count, size in zip(steps, sizes, strict=True)]
            budget, share = sum(flops) / self.design.flops, sum(flops[:-1]) / (sum(flops) or 1.0)
            seeds = tuple(self.design.seeds[:FEW])
            name = f"{sizes[-1].name}-{BRANCH}"
            shared = min(growth, decay)
            arms.append(Arm(FAMILY, name, BRANCH, sizes, steps, budget, share, chain.name, seeds, shared))
            arms += [self.shorter(FAMILY, sizes[-1], budget, BRANCH)] if before else []  # the first is from scratch
        return arms


def all_arms(design: Design, cost: Cost, ends: Callable[[int], int], decays: Callable[[int], int]) -> list[Arm]:
    """All that is trained; who has another's learning rate comes after it.

    Args:
        design: What is asked.
        cost: FLOPs of an optimizer step at a size.
        ends: Steps of a run whose learning rate begins to decay after so many.
        decays: The step after which that of a run of so many steps decays.
    """
    make = Maker(design, cost)
    arms = [make.scratch(size) for size in design.scratch_sizes]
    grown = [make.grown(size) for size in design.grown_sizes]
    arms += grown
    budgets = [budget for budget in design.scratch_budgets if budget != 1]
    arms += [make.shorter(BUDGETS, size, budget, f"x{budget:g}") for size in design.grown_sizes for budget in budgets]
    studied = [Size(design.sizes[0]), *([Size(1.0, max(design.depths))] if design.depths else [])]
    paths = {arm.sizes[-1]: arm for arm in grown}
    for size, share in itertools.product(studied, design.shares):
        if (share, len(paths[size].sizes)) != (paths[size].share, 2):  # that is how it is grown already
            arms.append(make.when(size, share))
    arms += [make.other(name) for name in design.recipes]
    if design.chain:
        arms += make.branches(paths[design.chain[-1]], ends, decays)
    return arms


def num_runs(design: Design) -> int:
    """Runs of the whole study, which do not depend on what a step costs."""
    arms = all_arms(design, lambda size: 1.0, lambda step: 2 * step, lambda steps: steps)
    rates = len(design.learning_rates)
    tried = rates if rates > 1 else 0
    return sum(len(arm.seeds) + tried * arm.tunes for arm in arms)


def labels_of(arm: Arm, parameters: Sequence[int]) -> dict[str, Any]:
    """What tables group by."""
    return {
        "question": arm.question, "arm": arm.name, "recipe": arm.recipe, "tokens": arm.sizes[-1].tokens,
        "depth": arm.sizes[-1].depth, "budget": arm.budget, "share": arm.share, "stages": list(arm.steps),
        "parameters": list(parameters),
    }  # fmt: skip
