"""Sharding by FSDP2 that can be undone: a model in parts, one a process, and whole again.

PyTorch shards a module once and for good. The module gets hooks and a state that remember its parameters and its
children, and what is put in their place is undone without a word. So nothing is sharded here that has to last. Before
the model's parts (its children: embedding, layers, head) are sharded, a copy of each is laid aside, empty of numbers;
to undo it, the copies are filled with what is gathered and take the parts' places. The root, which FSDP2 needs to do
the layers' communication ahead of time, is a module beside the model that only calls its methods; it is left behind
with the parts. The model itself, which trainer, optimizer and callbacks hold, stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

Parts = dict[str, nn.Module]
Successors = Mapping[Tensor, Tensor]


def tensors_of(parts: Parts) -> Iterator[Tensor]:
    """Parameters and buffers of all parts; one that parts share comes with each."""
    for part in parts.values():
        yield from (*part.parameters(), *part.buffers())


def copied(parts: Parts, tensors: Iterable[Tensor]) -> Parts:
    """Copies of the parts that hold other tensors, given in the order of `tensors_of`; what is shared stays shared."""
    return copy.deepcopy(parts, {id(old): new for old, new in zip(tensors_of(parts), tensors, strict=True)})


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """The values, as a parameter if the tensor is one."""
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if is_parameter else values


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor as a whole one, in every process; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Root(nn.Module):
    """The parts of a model together: calling it calls a method of the model, for which parameters are made whole."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, method: Callable[..., Any], *args: Any) -> Any:
        """What the method returns."""
        return method(*args)


class Sharding:
    """Spreads a model's parameters over the processes when made, until it is undone.

    ValueError if the model holds a parameter itself, which no part of it does.

    Args:
        model: The model, whose parameters are those of its children.
        layers: Modules in it, each of which is made whole when it is called, or stepped.
        methods: Names of the model's methods that need its other parameters whole.
        mesh: The processes.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], methods: Sequence[str], mesh: DeviceMesh) -> None:
        if own := [name for name, _ in model.named_parameters(recurse=False)]:
            raise ValueError(
                f"--trainer.strategy fsdp2 shards the parameters of a model's modules, and {type(model).__name__} "
                f"holds {', '.join(own)} itself; put each into an nn.Module, or use --trainer.strategy ddp"
            )
        self.model, self.methods, self.parts = model, methods, dict(model.named_children())
        self.empty = copied(self.parts, [like(t, torch.empty_like(t, device="meta")) for t in tensors_of(self.parts)])
        root = Root(self.parts)
        self.sharded = [*layers, root]
        for module in self.sharded:
            fully_shard(module, mesh=mesh)
        for layer in layers:
            for method in ("prefill", "step"):
                register_fsdp_forward_method(layer, method)
        for method in methods:
            setattr(model, method, partial(root, getattr(model, method)))

    def undo(self) -> Successors:
        """Give the model whole parts with the same numbers; returns what follows each sharded parameter."""
        for module in self.sharded:
            assert isinstance(module, FSDPModule)
            module.reshard()  # else a module may hold a whole copy, which the optimizer does not know
        old = list(tensors_of(self.parts))
        whole = {tensor: like(tensor, gathered(tensor)) for tensor in old}
        for name, part in copied(self.empty, [whole[tensor] for tensor in old]).items():
            setattr(self.model, name, part)
        for method in self.methods:
            delattr(self.model, method)
        return whole


def hand_over(optimizer: Optimizer, successors: Successors) -> None:
    """Let parameters take the place of others in an optimizer, the state gathered, or sharded as the new ones are."""
    for group in optimizer.param_groups:
        group["params"] = [successors[p] for p in group["params"]]
    for old, new in successors.items():
        if old in optimizer.state:
            optimizer.state[new] = {key: spread_as(new, value) for key, value in optimizer.state.pop(old).items()}


def spread_as(parameter: Tensor, value: Any) -> Any:
    """An entry of a parameter's optimizer state, whole or sharded as the parameter is; whole if of another shape."""
    if not isinstance(value, Tensor):
        return value
    whole = gathered(value)
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
