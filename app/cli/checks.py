"""Checks of options before any work begins: each raises a ValueError that names the option and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
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
    """Raise ValueError unless files can be written into the folder, which need not exist yet; nothing is left there."""
    check_place(option, folder, folder)


def check_file(option: str, file: Path) -> None:
    """Raise ValueError unless the file, new or not, can be written; it is not touched."""
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file")
    check_place(option, file, file.parent)


def check_place(option: str, place: Path, folder: Path) -> None:
    """Raise ValueError, naming the place, unless files can be written into its folder: it is tried."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{option} {place} cannot be written: {nearest} is no folder; name another")
    try:
        with TemporaryDirectory(prefix=".greenhouse-", dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{option} {place} cannot be written ({nearest}: {error.strerror}); name another") from error
