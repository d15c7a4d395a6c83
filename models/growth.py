"""Growing a model by appending rows to its key-value parameter tokens, without changing what it computes.

A row with a zero key scores zero, passes GeLU as zero and adds nothing, while its random value gives the key a
gradient: with the scale tau frozen the model is the same function after growth (TokenFormer, arXiv 2410.23168,
section 3.3). As all rows share tau, it may also rise afterwards, step by step, to what suits the new size. The
optimizer's moments move along, padded; until a new row's own moments have warmed up, its updates are corrected for
their age.

Shapes: n rows (parameter tokens), d width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from models.base import CHECKPOINT_KEY, LanguageModel, mixed_seed
from models.optim import Optim, build_optimizer

Init = Literal["zero_keys", "zero_values", "random", "zeros"]
TauPolicy = Literal["frozen", "ramped", "sqrt_n"]
Carry = Literal["per_row", "mean", "zeros", "reset"]
Sizes = dict[str, int]
Event = dict[str, Any]
MAX_SIZE = 2**31 - 1  # parameter tokens of a group
PROBE_SHAPE = (2, 64)  # sequences x tokens on which a growth event measures what it changed


def new_rows(old_nd: Tensor, num_rows: int, zero: bool, generator: torch.Generator) -> Tensor:
    """Rows (num_rows, d) to append: zero, or normal at the root mean square of the old ones. Drawn on the CPU."""
    if zero:
        return old_nd.new_zeros(num_rows, old_nd.size(1))
    scale = (
        old_nd.detach().float().square().mean().sqrt().clamp_min(1e-3)
    )  # else nothing would be drawn beside rows of zeros
    drawn = torch.randn(num_rows, old_nd.size(1), generator=generator)
    return (drawn.to(old_nd.device) * scale).to(old_nd.dtype)


def carry_state(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, carry: Carry) -> None:
    """Put `new` in the place of `old` in the optimizer, its state padded by rows.

    `mean` starts the second moment of new rows at the mean of the old rows'; `reset` drops all state; `per_row` and
    `zeros` pad with zeros (`per_row` is corrected at each step, see `update_scale`).
    """
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    if carry == "reset" or not state:
        return
    optimizer.state[new] = {key: _pad(value, key, old, new, carry) for key, value in state.items()}


def _pad(value: Any, key: str, old: nn.Parameter, new: nn.Parameter, carry: Carry) -> Any:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    tail = value.new_zeros(new.size(0) - old.size(0), old.size(1))
    if carry == "mean" and key == "exp_avg_sq":
        tail += value.mean(0)
    return torch.cat((value, tail))


def update_scale(age: int, optimizer_age: int, betas: tuple[float, float] | None, event: Event) -> float:
    """Factor on a new row's update, its `age`-th (from 1), when the optimizer makes its `optimizer_age`-th.

    Adam corrects the bias of its moments by the optimizer's age; a row that started later needs its own (Kingma & Ba,
    arXiv 1412.6980, section 3). The quotient of the two corrections is a number: (1 - b1^T)/(1 - b1^t) * sqrt((1 -
    b2^t)/(1 - b2^T)). The re-warm multiplies it by t / rewarm_steps. `betas` is None for an optimizer without bias
    correction.
    """
    scale = min(1.0, age / event["rewarm_steps"]) if event["rewarm_steps"] else 1.0
    if event["carry"] == "per_row" and betas:
        first = (1 - betas[0] ** optimizer_age) / (1 - betas[0] ** age)
        second = (1 - betas[1] ** age) / (1 - betas[1] ** optimizer_age)
        scale *= first * math.sqrt(second)
    return scale


def held_rows(weights_nd: Tensor, rows: slice) -> Tensor:
    """Those of some rows that this process holds, a view: all of them, or its part where FSDP2 shards the tensor."""
    if not isinstance(weights_nd, DTensor):
        return weights_nd[rows]
    shard_rows = -(-weights_nd.size(0) // weights_nd.device_mesh.size())
    begin = shard_rows * weights_nd.device_mesh.get_local_rank()
    return weights_nd.to_local()[max(0, rows.start - begin) : max(0, rows.stop - begin)]


def check_rewarm(rewarm_steps: int, tau: TauPolicy, option: str = "--") -> None:
    """Raise ValueError if new rows cannot be warmed up, or tau not be ramped, in so many steps."""
    if tau == "ramped" and rewarm_steps < 1:
        way = f"above 0, the steps in which {option}tau ramped rises"
    elif rewarm_steps < 0:
        way = "0 (off) or more"
    else:
        return
    raise ValueError(f"{option}rewarm_steps is {rewarm_steps}; it must be {way}")


def check_sizes(current: Sizes, target: Sizes, option: str = "--") -> None:
    """Raise ValueError if a group is unknown, would shrink, or be larger than memories are."""
    for group, size in target.items():
        if group not in current:
            raise ValueError(
                f"{option}{group}: the model has no such parameter tokens, only {', '.join(current) or 'none'}"
            )
        if size < current[group]:
            raise ValueError(
                f"{option}{group} {size} would shrink the model, which has {current[group]}; growth only adds"
            )
        if size > MAX_SIZE:
            raise ValueError(f"{option}{group} {size:.3g} is too much for any machine; it must be at most {MAX_SIZE}")


class GrowableModel(LanguageModel):
    """A language model some of whose layers hold parameter tokens, in named groups of one size each."""

    @abstractmethod
    def pattentions(self) -> dict[str, list[Any]]:
        """The layers with parameter tokens by the name of the option that sizes them."""

    def parameter_token_sizes(self) -> Sizes:
        """Current number of parameter tokens of each group."""
        return {group: layers[0].num_param_tokens for group, layers in self.pattentions().items()}

    def initial_sizes(self) -> Sizes:
        """Sizes before the first growth event."""
        return self.growth_events[0]["from"] if self.growth_events else self.parameter_token_sizes()

    def grow(
        self,
        sizes: Sizes,
        optimizer: Optimizer | None,
        *,
        step: int,
        init: Init = "zero_keys",
        tau: TauPolicy = "frozen",
        carry: Carry = "per_row",
        rewarm_steps: int = 0,
    ) -> Event:
        """Grow the named groups to `sizes` and carry the optimizer along; returns the event, which joins the lineage.

        Rows are drawn from generators seeded by (seed, layer, step). The event tells the largest relative change of a
        layer's output and of a logit, measured on random tokens.
        """
        before = self.parameter_token_sizes()
        check_sizes(before, sizes)
        tau_from = {group: float(self.pattentions()[group][0].tau) for group in sizes}
        with self._measured_change(step) as change:
            for index, (layer, size) in enumerate(self._layers_to_grow(sizes)):
                generator = torch.Generator().manual_seed(mixed_seed(self.seed, index, step))
                for old, new in layer.grow(size, init, tau, generator):
                    if optimizer is not None:
                        carry_state(optimizer, old, new, carry)
        if carry == "reset" and optimizer is not None:
            optimizer.state.clear()
        self.hparams.update(self.parameter_token_sizes())
        if self.compile_layers:
            torch.compiler.reset()  # a layer compiled for more than eight sizes would silently run uncompiled
        event = {
            "step": step, "tokens": self.tokens_seen, "flops": self.flops_spent, "seed": self.seed, "from": before,
            "to": self.parameter_token_sizes(), "init": init, "tau": tau, "carry": carry, "rewarm_steps": rewarm_steps,
            "tau_from": tau_from,
        }  # fmt: skip
        self.growth_events.append(event | change)
        return self.growth_events[-1]

    def _layers_to_grow(self, sizes: Sizes) -> Iterator[tuple[Any, int]]:
        groups = self.pattentions()
        return ((layer, sizes[group]) for group in groups if group in sizes for layer in groups[group])

    @contextmanager
    def _measured_change(self, step: int) -> Iterator[dict[str, Any]]:
        """Fill the yielded dict with what the block changed: `relative_change` of each layer, `logit_change`."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step))
        tokens_BT = torch.randint(self.vocab_size, PROBE_SHAPE, generator=generator).to(self.device)
        layers = [layer for group in self.pattentions().values() for layer in group]
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def remember(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen[id(layer)] = (inputs[0], output)

        change: dict[str, Any] = {}
        training = self.training
        self.eval()
        with torch.compiler.set_stance("force_eager"):
            hooks = [layer.register_forward_hook(remember) for layer in layers]
            logits = _no_grad(self, tokens_BT)
            for hook in hooks:
                hook.remove()
            yield change
            change["logit_change"] = float((_no_grad(self, tokens_BT) - logits).abs().max())
            change["relative_change"] = [
                _relative(_no_grad(layer, seen[id(layer)][0]), seen[id(layer)][1]) for layer in layers
            ]
        self.train(training)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The optimizer's step, after which young rows' updates are scaled by `update_scale`, and tau is ramped."""
        steps = self.trainer.global_step + 1  # with this one
        young = [(held_rows(p.detach(), rows), scale) for p, rows, scale in self._young_rows(optimizer)]
        before = [weights_nd.clone() for weights_nd, _ in young]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for (weights_nd, scale), before_nd in zip(young, before, strict=True):
            weights_nd.copy_(torch.lerp(before_nd, weights_nd, scale))
        self._raise_tau(steps)

    def _raise_tau(self, steps: int) -> None:
        """Let tau be what it is after so many steps in each group whose last growth ramps it: linear in the re-warm."""
        for group, layers in self.pattentions().items():
            event = next((event for event in reversed(self.growth_events) if group in event["tau_from"]), None)
            if event is None or event["tau"] != "ramped":
                continue
            start, end = event["tau_from"][group], math.sqrt(event["to"][group])
            part = min(1.0, (steps - event["step"]) / event["rewarm_steps"])
            for layer in layers:
                layer.tau.fill_(start + part * (end - start))

    def _young_rows(self, optimizer: Any) -> Iterator[tuple[nn.Parameter, slice, float]]:
        """Parameters, rows and factors of all rows whose updates are not yet taken as they are."""
        resets = [i for i, event in enumerate(self.growth_events) if event["carry"] == "reset"]
        events = self.growth_events[max(resets, default=0) :]
        steps, betas = self.trainer.global_step + 1, optimizer.param_groups[0].get("betas")
        optimizer_age = steps - events[0]["step"] if resets else steps
        for event in events:
            scale = update_scale(steps - event["step"], optimizer_age, betas, event)
            if abs(scale - 1) < 1e-6:  # a few roundings of float32
                continue
            for group, layers in self.pattentions().items():
                rows = slice(event["from"][group], event["to"][group])
                yield from ((p, rows, scale) for layer in layers for p in layer.parameters() if rows.start < rows.stop)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the lineage, and let the saved hyper-parameters tell the current sizes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["growth_events"] = self.growth_events
        checkpoint["hyper_parameters"] |= self.parameter_token_sizes()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the lineage back; the layers size themselves when their weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        self.growth_events = list(checkpoint[CHECKPOINT_KEY]["growth_events"])
        self.hparams.update({group: checkpoint["hyper_parameters"][group] for group in self.pattentions()})


def grow_checkpoint(model: GrowableModel, checkpoint: dict[str, Any], sizes: Sizes, **how: Any) -> Event:
    """Grow `model`, which was loaded from `checkpoint`, and write the result back into `checkpoint`.

    `how` are the keyword arguments of `GrowableModel.grow`. What a fit's Growth would do at the checkpoint's step,
    bit for bit.
    """
    optimizer = build_optimizer(model, Optim(**checkpoint[CHECKPOINT_KEY]["optim"]))
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    event = model.grow(sizes, optimizer, step=checkpoint["global_step"], **how)
    checkpoint["state_dict"] = model.state_dict()
    checkpoint["optimizer_states"] = [optimizer.state_dict()]
    model.on_save_checkpoint(checkpoint)
    return event


def _no_grad(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = module(x)
    return y


def _relative(new: Tensor, old: Tensor) -> float:
    return float((new - old).norm() / old.norm().clamp_min(1e-12))  # nothing changes relative to nothing
