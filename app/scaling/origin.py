"""What the points of a law come from, without which its N and its optima mean little.

N is the number of all parameters, but a model grows by its width or by its parameter tokens, and a model of one size is
another one in either way: a law of the one says nothing of the other. A loss is that of a size only at its best
learning rate, and says how sure it is only by several seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.scaling.points import Point

ENOUGH_RATES, ENOUGH_SEEDS = 5, 3  # learning rates and seeds of the protocol in docs/studies.md


def varying(points: Sequence[Point]) -> dict[str, list[str]]:
    """The model's options, of those that all points have, that differ, each with one that it goes along with or alone.

    Returns:
        By the name of an option that varies by itself, the names of those that follow from it.
    """
    shared = [name for name in points[0].options if all(name in point.options for point in points)]
    values = {name: [json.dumps(point.options[name]) for point in points] for name in shared}
    left = [name for name in values if len(set(values[name])) > 1]
    leaders: dict[str, list[str]] = {}
    while left:
        leader, *others = left
        kinds = len(set(values[leader]))
        followers = [name for name in others if len(set(zip(values[leader], values[name], strict=True))) == kinds]
        leaders[leader] = followers
        left = [name for name in others if name not in followers]
    return leaders


def is_number(value: Any) -> bool:
    """Whether an option has sizes, which yes and no have not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def span(points: Sequence[Point], name: str) -> str:
    """An option with its least and greatest value, or with all of them if they are no numbers."""
    values = [point.options[name] for point in points]
    if all(map(is_number, values)):
        return f"{name} {min(values):g} .. {max(values):g}"
    return f"{name} {', '.join(dict.fromkeys(json.dumps(value) for value in values))}"


def kind_of_size(points: Sequence[Point]) -> str:
    """Which N it is: the options that vary, each with its span and those that go along with it."""
    leaders = varying(points)
    if not leaders:
        return "of models whose options do not differ"
    told = [span(points, name) + (f" with {', '.join(leaders[name])}" if leaders[name] else "") for name in leaders]
    apart = "; they vary apart from each other, so N does not say which model is meant" if len(told) > 1 else ""
    return f"of models that differ in {' and in '.join(told)}{apart}"


def stranger(points: Sequence[Point], options: Mapping[str, Any]) -> str:
    """In which options a model is none of those that points are of, whatever its size; empty if it is one of them.

    What goes along with an option does so in proportion, rounded, as the widths of a comparison do. An option of which
    one of the two knows nothing, as it came or went with another version, is no difference.
    """
    leaders, known = varying(points), points[0].options
    followers = {follower: leader for leader, names in leaders.items() for follower in names}
    odd = []
    for name in [name for name in known if name in options and name not in leaders]:
        ours, theirs, leader = known[name], options[name], followers.get(name)
        if leader is None:
            odd += [name] * (ours != theirs)
        elif all(map(is_number, (known[leader], options.get(leader), ours, theirs))):
            odd += [name] * (abs(theirs - ours * options[leader] / known[leader]) > 1)
    return ", ".join(odd)


def tuning(points: Sequence[Point]) -> str:
    """Learning rates and seeds at each size, and whether they are enough."""
    rates, at_end = min(point.rates for point in points), sum(point.rate_at_end is True for point in points)
    seeds: dict[tuple[int, int], set[int | None]] = {}
    for point in points:
        seeds.setdefault((point.parameters, point.steps), set()).add(point.seed)
    fewest = min(map(len, seeds.values()))
    few = [f"{ENOUGH_RATES} learning rates"] * (rates < ENOUGH_RATES)
    few += [f"{ENOUGH_SEEDS} seeds"] * (fewest < ENOUGH_SEEDS)
    ends = f", the best at an end of them in {at_end} of {len(points)} runs" if at_end else ""
    return f"{rates} tried{ends}; seeds {fewest}" + (f"; fewer than {' and '.join(few)}" if few else "")


def short_of_momentum(points: Sequence[Point]) -> str:
    """How many runs end before Muon's momentum has risen; empty if none does."""
    early = [point for point in points if point.steps < point.momentum_warmup]
    if not early:
        return ""
    return f"{len(early)} of {len(points)} runs end before Muon's momentum has risen, {early[0].momentum_warmup} steps"


def rows_of(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """What the points come from, as rows of a table."""
    rows = [("N", "all parameters", kind_of_size(points)), ("learning rates", "", tuning(points))]
    early = short_of_momentum(points)
    return [*rows, *([("warm-up", "", early)] if early else [])]
