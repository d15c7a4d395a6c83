"""How a model can grow: the recipe under study, and those that it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JUMP = "callbacks.growth_jump.JumpAtGrowth"
SCRATCH, GROWN, BRANCH = "scratch", "grown", "branch"
DEEPER, CHAIN = "layers", "chain"  # questions
ONCE, ONE_LARGE = "once", "one_large"  # of the largest size, which grows through a chain of sizes otherwise


@dataclass(frozen=True)
class Recipe:
    """How a model grows.

    Attributes:
        text: What it is, for the legend.
        tokens: Options of `--growth.*` where parameter tokens are added; empty where it is of layers only.
        layers: The same where layers are added; empty where it is of parameter tokens only.
        needs: Question without which there is nothing to grow by it, if there is one.
        rewarm: Whether rows without moments are warmed up.
        tuned: Whether it has a learning rate of its own and all seeds, not the main recipe's rate and a few.
        restart: Whether warm-up and schedule of the learning rate begin anew at each growth.
        optim: Options of the recipe of training that it changes.
    """

    text: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    rewarm: bool = True
    restart: bool = False
    tuned: bool = False
    optim: Mapping[str, Any] = field(default_factory=dict)


SPLIT = {"init": "split", "tau": "sqrt_n", "carry": "per_row"}
STACK = {"layer_init": "stack", "carry": "per_row"}
MAIN = Recipe(
    "parameter tokens are split, layers are copied; optimizer state, schedule and data go on",
    tokens=SPLIT,
    layers=STACK,
)
OTHERS = {
    "zero_keys": Recipe(
        "new parameter tokens have zero keys, tau stays frozen, new rows are warmed up; tuned",
        tokens={"init": "zero_keys", "tau": "frozen", "carry": "per_row"}, tuned=True,
    ),
    "ramped": Recipe(
        "as zero_keys, untuned, and tau then rises to sqrt n within the re-warm",
        tokens={"init": "zero_keys", "tau": "ramped", "carry": "per_row"},
    ),
    "published": Recipe(
        "as the published code: fresh rows, tau = sqrt n, optimizer and schedule begin anew at each growth, no re-warm",
        tokens={"init": "fresh", "tau": "sqrt_n", "carry": "reset"}, rewarm=False, restart=True,
    ),
    "asymmetric": Recipe(
        "as grown, but all copies but the first begin without moments, and are warmed up",
        tokens=SPLIT | {"carry": "asymmetric"},
    ),
    "dropped": Recipe("as grown, but all optimizer state is dropped", tokens=SPLIT | {"carry": "reset"}, rewarm=False),
    "cosine": Recipe("as grown, but on a cosine schedule", tokens=SPLIT, optim={"schedule": "cosine"}),
    "exact_layers": Recipe(
        "new layers are copies whose outputs start at zero", layers=STACK | {"layer_init": "exact"}, needs=DEEPER,
    ),
    ONCE: Recipe("the largest size as the others: grown once, from half of it", tokens=SPLIT, needs=CHAIN),
    ONE_LARGE: Recipe(
        "the largest size grown once, from the first of the chain, when the chain ends", tokens=SPLIT, needs=CHAIN,
    ),
}  # fmt: skip
RECIPES = {GROWN: MAIN, **OTHERS, BRANCH: MAIN}
