"""What a comparison is asked to compare: the verb's options, checked as far as that takes no PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from app.cli.checks import at_least_one, check_seed, unique
from app.compare.search import num_runs, shares
from app.compare.space import Space, Trial


class Size(NamedTuple):
    """Size of a model, 0 standing for what its experiment file has."""

    d_model: int
    num_layers: int

    @property
    def name(self) -> str:
        """As it stands in a run's name, where the experiment file does not decide: -d64-l2."""
        return "".join(f"-{letter}{value}" for letter, value in zip("dl", self, strict=True) if value)

    @property
    def options(self) -> str:
        """As a message names it: ` at --d_models 64`; empty where the experiment file decides."""
        given = [f"--{axis} {value}" for axis, value in zip(("d_models", "num_layers"), self, strict=True) if value]
        return f" at {' and '.join(given)}" if given else ""


Group = tuple[str, str, Size, float]  # task, model, size, budget


@dataclass(frozen=True)
class Grid:
    """All that is compared: names and values of the verb's options; ValueError for what cannot be.

    Attributes:
        models: Their names.
        tasks: Folders of experiment files.
        sizes: Widths and numbers of layers.
        seeds: Those that are reported.
        search: Trials of the search for each group; 0 for none.
        search_seed: Seed of all trials, none of the reported ones.
        space: What the search chooses from.
        unit: Unit of the budgets, `tokens` or `flops`.
        budgets: Budgets, one of which each run has.
        factors: Multiples of the learning rates, which are tried in the place of a search; empty for none.
        validations: Validations in each run.
        presets: Folder of the experiment files.
        trainer: What is passed on to every fit, as typed.
    """

    models: list[str]
    tasks: list[str]
    sizes: list[Size]
    seeds: list[int]
    search: int
    search_seed: int
    space: Space
    unit: str
    budgets: list[float]
    factors: list[float]
    validations: int
    presets: Path
    trainer: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is out of its range."""
        at_least_one(validations=self.validations)
        check_seed("search_seed", self.search_seed)
        if self.search < 0:
            raise ValueError(f"--search is {self.search}; it must be at least 1, or 0 for no search")
        if self.search and self.factors:
            raise ValueError("--search tries learning rates, too; leave --learning_rates out")
        if self.chooses and self.search_seed in self.seeds:
            raise ValueError(
                f"--seeds {self.seeds} has {self.search_seed}, the seed that chooses; leave it out, or give another "
                "--search_seed"
            )
        if not all(0 < factor < float("inf") for factor in self.factors):
            raise ValueError(
                f"--learning_rates {self.factors} must be above 0; they multiply those of the experiment file"
            )
        if not self.presets.is_dir():
            raise ValueError(f"--presets {self.presets} is no folder; name one with files TASK/*.yaml")

    def plain(self) -> dict[str, Any]:
        """As it stands in the study's file."""
        return asdict(self) | {"presets": str(self.presets)}

    def groups(self) -> Iterator[Group]:
        """What is compared, each over trials and seeds."""
        return itertools.product(self.tasks, self.models, self.sizes, self.budgets)

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose from."""
        return self.search > 0 or len(self.factors) > 1

    @property
    def rungs(self) -> list[float]:
        """Shares of the budget that trials have."""
        return shares(self.search) if self.search else [1.0]

    def trials(self, model: type) -> list[Trial]:
        """What is tried first for a model; one trial alone is not tried, but taken."""
        if self.search:
            return [self.space.trial(number, model) for number in range(self.search)]
        return [Trial(number, factor) for number, factor in enumerate(self.factors or [1.0])]

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest multiple of the learning rates that is tried."""
        return self.space.learning_rate if self.search else (min(self.factors), max(self.factors))

    @property
    def num_runs(self) -> int:
        """Runs of the whole comparison, unless a range has to be widened."""
        tried = num_runs(self.search) if self.search else len(self.factors) if self.chooses else 0
        return len(list(self.groups())) * (tried + len(self.seeds))


def sizes(d_models: Sequence[int] | None, num_layers: Sequence[int] | None) -> list[Size]:
    """Each width with each number of layers; ValueError for one below 1, or given twice."""
    axes = []
    for name, given in (("d_models", d_models), ("num_layers", num_layers)):
        for value in given or ():
            at_least_one(**{name: value})
        axes.append([0] if given is None else unique(name, given))
    return [Size(*size) for size in itertools.product(*axes)]


def budget(tokens: float | list[float] | None, flops: float | list[float] | None) -> tuple[str, list[float]]:
    """`tokens` or `flops`, and how many; ValueError unless just one of them is given, and above 0."""
    if (tokens is None) == (flops is None):
        raise ValueError("give one budget: --tokens, such as 1e6, or --flops, such as 1e12")
    unit, given = ("flops", flops) if tokens is None else ("tokens", tokens)
    values = unique(unit, given if isinstance(given, list) else [given])
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"--{unit} {values} must be above 0")
    return unit, values
