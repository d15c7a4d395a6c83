"""What becomes of an optimizer's state when its parameters grow, and of the updates of rows that have none yet.

Rows that were there keep their moments. A split row's copies have the moments that they would have had: a row whose
output was split r ways has about 1/r of the gradient at its key, and the same gradient at its value, so that the key's
first moment is divided by r and its second by r^2. Rows without a past begin with moments of zero, and until these have
warmed up, their updates are corrected for their age.

Shapes: n rows (parameter tokens), d width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

Carry = Literal["per_row", "asymmetric", "mean", "zeros", "reset"]
Event = dict[str, Any]


class Replaced(NamedTuple):
    """A parameter (n, d) that took another's place: the old rows `copies` times over, then rows without a past.

    Attributes:
        old: What it replaces.
        new: The parameter.
        copies: How often the old rows are there.
        gradient: A copy's gradient, as a multiple of the old row's.
    """

    old: nn.Parameter
    new: nn.Parameter
    copies: int = 1
    gradient: float = 1.0


def carry_state(optimizer: Optimizer, replaced: Replaced, carry: Carry) -> None:
    """Put the new parameter in the old one's place in the optimizer, with its state.

    `asymmetric` lets all copies but the first begin without moments; `mean` starts the second moment of rows without a
    past at the mean of the others'; `reset` drops all state; `per_row` and `zeros` pad with zeros (`per_row` and
    `asymmetric` are corrected at each step, see `update_scale`).
    """
    for group in optimizer.param_groups:
        group["params"] = [replaced.new if p is replaced.old else p for p in group["params"]]
    state = optimizer.state.pop(replaced.old, {})
    if carry != "reset" and state:
        optimizer.state[replaced.new] = {key: _carried(value, key, replaced, carry) for key, value in state.items()}


def _carried(value: Any, key: str, replaced: Replaced, carry: Carry) -> Any:
    if not isinstance(value, Tensor) or value.shape != replaced.old.shape:
        return value
    is_squared = key.endswith("exp_avg_sq")
    kept = value * replaced.gradient ** (2 if is_squared else 1)
    others = torch.zeros_like(kept) if carry == "asymmetric" else kept
    tail = value.new_zeros(replaced.new.size(0) - replaced.copies * value.size(0), value.size(1))
    if carry == "mean" and is_squared:
        tail += kept.mean(0)
    return torch.cat((kept, *[others] * (replaced.copies - 1), tail))


def copy_state(optimizer: Optimizer, source: nn.Module, copy: nn.Module, module: nn.Module, carry: Carry) -> None:
    """Let the optimizer train a copy of a part of `module`, too, with its source's state; `reset` drops it.

    Parameters stand in their groups in the order of the module's, as in an optimizer made for the larger module.
    """
    of_source = {id(old): new for old, new in zip(source.parameters(), copy.parameters(), strict=True)}
    place = {id(p): number for number, p in enumerate(module.parameters())}
    for group in optimizer.param_groups:
        added = [of_source[id(p)] for p in group["params"] if id(p) in of_source]
        group["params"] = sorted([*group["params"], *added], key=lambda p: place[id(p)])
    for old, new in zip(source.parameters(), copy.parameters(), strict=True):
        if carry != "reset" and old in optimizer.state:
            optimizer.state[new] = deepcopy(optimizer.state[old])


# Young rows -----------------------------------------------------------------------------------------------------------


def update_scale(age: int, optimizer_age: int, betas: tuple[float, float] | None, event: Event) -> float:
    """Factor on a young row's update, its `age`-th (from 1), when the optimizer makes its `optimizer_age`-th.

    Adam corrects the bias of its moments by the optimizer's age; a row that started later needs its own (Kingma & Ba,
    arXiv 1412.6980, section 3). The quotient of the two corrections is a number: (1 - b1^T)/(1 - b1^t) * sqrt((1 -
    b2^t)/(1 - b2^T)). The re-warm multiplies it by t / rewarm_steps. `betas` is None for an optimizer without bias
    correction.
    """
    scale = min(1.0, age / event["rewarm_steps"]) if event["rewarm_steps"] else 1.0
    if event["carry"] in ("per_row", "asymmetric") and betas:
        first = (1 - betas[0] ** optimizer_age) / (1 - betas[0] ** age)
        second = (1 - betas[1] ** age) / (1 - betas[1] ** optimizer_age)
        scale *= first * math.sqrt(second)
    return scale


def copies_of(event: Event, group: str) -> int:
    """How often an event left the old rows of a group there."""
    copies: int = event.get("copies", {}).get(group, 1)  # an older version's events copied nothing
    return copies


def young_rows(events: Sequence[Event], number: int, group: str) -> list[slice]:
    """Where the rows that began without a past at an event are now, after those that followed it.

    A later split copies young rows as it does all others; its copies that begin anew are that event's young rows.
    """
    event = events[number]
    kept = event["from"][group] * (1 if event["carry"] == "asymmetric" else copies_of(event, group))
    begins = [kept] if kept < event["to"][group] else []
    for later in events[number + 1 :]:
        if later["carry"] != "asymmetric":
            begins = [k * later["from"][group] + begin for k in range(copies_of(later, group)) for begin in begins]
    return [slice(begin, begin + event["to"][group] - kept) for begin in begins]


def scaled_updates(
    events: Sequence[Event], groups: Sequence[str], step: int, betas: tuple[float, float] | None
) -> Iterator[tuple[str, slice, float]]:
    """Groups, rows and factors of all rows whose updates are not yet taken as they are, at the `step`-th update."""
    resets = [number for number, event in enumerate(events) if event["carry"] == "reset"]
    optimizer_age = step - events[resets[-1]]["step"] if resets else step
    for number in range(max(resets, default=0), len(events)):
        event = events[number]
        scale = update_scale(step - event["step"], optimizer_age, betas, event)
        if abs(scale - 1) < 1e-6:  # a few roundings of float32
            continue
        for group in groups:
            yield from ((group, rows, scale) for rows in young_rows(events, number, group))


def held_rows(weights_nd: Tensor, rows: slice) -> Tensor:
    """Those of some rows that this process holds, a view: all of them, or its part where FSDP2 shards the tensor."""
    if not isinstance(weights_nd, DTensor):
        return weights_nd[rows]
    shard_rows = -(-weights_nd.size(0) // weights_nd.device_mesh.size())
    begin = shard_rows * weights_nd.device_mesh.get_local_rank()
    return weights_nd.to_local()[max(0, rows.start - begin) : max(0, rows.stop - begin)]
