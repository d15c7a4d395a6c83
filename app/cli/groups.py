"""Options of a class whose constructor is not the verb's own: `--model.d_model 64` beside `--model TokenFormer`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptionGroup:
    """The default of a parameter that takes `--NAME.option VALUE` beside, or in place of, `--NAME VALUE`.

    Args:
        value: What `--NAME` itself says; None if there is no such option.
        options: The arguments `--NAME.option VALUE` as they were typed; who knows what the value names parses them.
        kind: Name of the only class that takes them; None where `--NAME` chooses it, or there is but one.
        defaults: What the verb takes in the place of the class's own defaults.
        ours: Options that the verb's own decide, which are not taken.
    """

    value: str | None = None
    options: tuple[str, ...] = ()
    kind: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()


def split_groups(args: Sequence[str], groups: Collection[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Arguments that belong to no group, and those of each: `--GROUP.option=VALUE` or `--GROUP.option VALUE`."""
    others: list[str] = []
    found: dict[str, list[str]] = {group: [] for group in groups}
    rest = iter(args)
    for arg in rest:
        group, dot, _ = arg.removeprefix("--").partition(".")
        if not (arg.startswith("--") and dot and group in found):
            others.append(arg)
            continue
        found[group] += [arg] if "=" in arg else [arg, *([value] if (value := next(rest, None)) is not None else [])]
    return others, {group: tuple(options) for group, options in found.items()}
