"""Checks of options before any work begins: each raises a ValueError that names the option and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MAX_SEED = 2**32  # what NumPy takes


def at_least_one(**values: int | None) -> None:
    """Raise ValueError naming the first option below 1; None stands for an option that was left out."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")


def unique(option: str, values: Sequence[T]) -> list[T]:
    """The values; ValueError if there is none, or one stands twice."""
    if not values:
        raise ValueError(f"--{option} is empty; name at least one, or leave it out")
    if len(set(values)) < len(values):
        raise ValueError(f"--{option} {list(values)} names one twice")
    return list(values)


def check_seed(option: str, seed: int) -> None:
    """Raise ValueError for a seed that no random generator takes."""
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"--{option} {seed} is not between 0 and 2^32 - 1")


def unique_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of `--seeds`; ValueError for one that no run takes, or that stands twice."""
    for seed in seeds:
        check_seed("seeds", seed)
    return unique("seeds", seeds)


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueError if the folder, or one that it would lie in, is a file."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--{option} {folder} cannot be written: {path} is no folder; name another")
