"""What a comparison is asked to compare: the verb's options, checked as far as that takes no PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.cli.checks import at_least_one, unique


@dataclass(frozen=True)
class Grid:
    """All that is compared: names and values of the verb's options; ValueError for what cannot be.

    Attributes:
        models: Their names.
        tasks: Folders of experiment files.
        d_models: Widths; 0 for the file's own.
        seeds: The first chooses the learning rate.
        unit: Unit of the budgets, `tokens` or `flops`.
        budgets: Budgets, one of which each run has.
        factors: Multiples of the learning rates.
        validations: Validations in each run.
        presets: Folder of the experiment files.
        trainer: What is passed on to every fit, as typed.
    """

    models: list[str]
    tasks: list[str]
    d_models: list[int]
    seeds: list[int]
    unit: str
    budgets: list[float]
    factors: list[float]
    validations: int
    presets: Path
    trainer: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is out of its range."""
        at_least_one(validations=self.validations)
        if not all(0 < factor < float("inf") for factor in self.factors):
            raise ValueError(
                f"--learning_rates {self.factors} must be above 0; they multiply those of the experiment file"
            )
        if not self.presets.is_dir():
            raise ValueError(f"--presets {self.presets} is no folder; name one with files TASK/*.yaml")

    def plain(self) -> dict[str, Any]:
        """As it stands in the study's file."""
        return asdict(self) | {"presets": str(self.presets)}

    def groups(self) -> Iterator[tuple[str, str, int, float]]:
        """Task, model, width and budget of what is compared, each over learning rates and seeds."""
        return itertools.product(self.tasks, self.models, self.d_models, self.budgets)

    @property
    def num_runs(self) -> int:
        """Runs of the whole comparison: the first seed tries all learning rates, the others one."""
        return len(list(self.groups())) * (len(self.factors) + len(self.seeds) - 1)


def widths(given: Sequence[int] | None) -> list[int]:
    """The widths, 0 standing for that of the experiment file; ValueError for one below 1."""
    for width in given or ():
        if width < 1:
            raise ValueError(f"--d_models {width} is no width; it must be at least 1")
    return [0] if given is None else unique("d_models", given)


def budget(tokens: float | list[float] | None, flops: float | list[float] | None) -> tuple[str, list[float]]:
    """`tokens` or `flops`, and how many; ValueError unless just one of them is given, and above 0."""
    if (tokens is None) == (flops is None):
        raise ValueError("give one budget: --tokens, such as 1e6, or --flops, such as 1e12")
    unit, given = ("flops", flops) if tokens is None else ("tokens", tokens)
    values = unique(unit, given if isinstance(given, list) else [given])
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"--{unit} {values} must be above 0")
    return unit, values
