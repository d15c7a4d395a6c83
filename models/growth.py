"""Growing a model in the middle of its training: by key-value parameter tokens, and by layers.

**Split** rows (the default): every row becomes r rows, its key r times, its value in r parts with noise that adds up to
zero, K' = [K; K; ...], V' = [V/r + N_1; V/r + N_2; ...], sum N_j = 0, and tau' = tau sqrt r. Each score comes r times,
so that its norm grows by sqrt r, which tau' takes back; the model is the same function after growth, whatever Theta,
and where tau was the root of the number of rows it is so again. The noise tells the copies apart. (Splitting a hidden
unit is Net2Net's, arXiv 1511.05641; opposite noise on the halves keeps the function.)

**Zero keys** score zero, pass GeLU as zero and add nothing, while their random values give the keys a gradient
(TokenFormer, arXiv 2410.23168, section 3.3): exact while tau is frozen. They also fill what a split leaves over.

**Layers** are copied, all of them in turn, on top of those that there are (G_stack, arXiv 2405.15319), or exactly, with
outputs of zero.

What becomes of the optimizer's state is in `models.carry`. Shapes: n rows (parameter tokens), d width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.base import CHECKPOINT_KEY, LanguageModel, mixed_seed
from models.carry import Carry, Event, carry_state, copy_state, held_rows, scaled_updates
from models.layers import check_choice
from models.optim import Optim, build_optimizer

Init = Literal["split", "zero_keys", "zero_values", "random", "fresh", "zeros"]
LayerInit = Literal["stack", "exact"]
TauPolicy = Literal["sqrt_n", "ramped", "frozen"]
Sizes = dict[str, int]
LAYERS = "num_layers"
MAX_SIZE = 2**31 - 1  # parameter tokens of a group
MAX_LAYERS = 10_000
PROBE_SHAPE = (2, 64)  # sequences x tokens on which a growth event measures what it changed


@dataclass(frozen=True)
class GrowthRules:
    """How a model grows; the options of `--growth.*` and of `grow`.

    Args:
        init: How parameter tokens are added: rows split, or new ones with a key of zero, a value of zero, both random
            at the size of the old ones, both as at the start of training (fresh), or both zero, which never learn.
        split_noise: Noise on the values of split rows, as a multiple of their root mean square.
        tau: What becomes of the scale: the root of the new size (sqrt_n; of split rows it is so anyway, but for what is
            left over, for which it rises within the re-warm), the same within the re-warm (ramped), or as it was.
        carry: What becomes of the optimizer's moments, see `models.carry`.
        rewarm_steps: Steps in which the learning rate of rows without moments rises to that of the others.
        layer_init: How layers are added: copies of those that there are, or such copies with outputs of zero (exact).
    """

    init: Init = "split"
    split_noise: float = 1.0
    tau: TauPolicy = "sqrt_n"
    carry: Carry = "per_row"
    rewarm_steps: int = 50
    layer_init: LayerInit = "stack"

    def check(self, option: str = "--") -> None:
        """Raise ValueError, naming what begins with `option`, for what no growth can be."""
        for name, choices in (("init", Init), ("tau", TauPolicy), ("carry", Carry), ("layer_init", LayerInit)):
            check_choice(f"{option}{name}", getattr(self, name), choices)
        if not 0 < self.split_noise < math.inf:
            raise ValueError(
                f"{option}split_noise is {self.split_noise}; it must be above 0, as equal copies never part"
            )
        if self.rewarm_steps < 0:
            raise ValueError(f"{option}rewarm_steps is {self.rewarm_steps}; it must be 0 (off) or more")
        if self.tau == "ramped" and self.rewarm_steps < 1:
            raise ValueError(
                f"{option}rewarm_steps is {self.rewarm_steps}; it must be above 0, the steps in which {option}tau "
                "ramped rises"
            )

    @property
    def ramps(self) -> bool:
        """Whether tau rises after the event to the root of the new size, if it is not that already."""
        return self.tau == "ramped" or (self.tau == "sqrt_n" and self.init == "split")


# Rows -----------------------------------------------------------------------------------------------------------------


def root_mean_square(weights: Tensor) -> float:
    """Of all numbers; never so small that nothing would be drawn beside rows of zeros."""
    return float(weights.detach().float().square().mean().sqrt().clamp_min(1e-3))


def normal_rows(like_nd: Tensor, num_rows: int, std: float, generator: torch.Generator) -> Tensor:
    """Rows (num_rows, d) from N(0, std^2), in the type and on the device of `like_nd`; drawn on the CPU."""
    drawn = torch.randn(num_rows, like_nd.size(1), generator=generator)
    return (drawn * std).to(like_nd.device, like_nd.dtype)


def split_values(old_nd: Tensor, copies: int, noise: float, generator: torch.Generator) -> Tensor:
    """Values (copies n, d) that add up to the old ones (n, d), copy by copy.

    The noise of each has `noise` times the root mean square of the old ones; that of two copies is opposite.
    """
    if copies == 1:
        return old_nd
    noise_cnd = torch.randn(copies, *old_nd.shape, generator=generator, dtype=torch.float64)
    noise_cnd = (noise_cnd - noise_cnd.mean(0)) * (noise * root_mean_square(old_nd) * (copies / (copies - 1)) ** 0.5)
    values_cnd: Tensor = (old_nd.double() / copies + noise_cnd.to(old_nd.device)).to(old_nd.dtype)
    return values_cnd.flatten(0, 1)


def check_sizes(current: Sizes, target: Sizes, option: str = "--") -> None:
    """Raise ValueError if a group is unknown, would shrink, or be larger than memories are."""
    for group, size in target.items():
        if group not in current:
            raise ValueError(f"{option}{group}: the model has none to grow, only {', '.join(current) or 'nothing'}")
        if size < current[group]:
            raise ValueError(
                f"{option}{group} {size} would shrink the model, which has {current[group]}; growth only adds"
            )
        largest = MAX_LAYERS if group == LAYERS else MAX_SIZE
        if size > largest:
            raise ValueError(f"{option}{group} {size:.3g} is too much for any machine; it must be at most {largest}")


# Models ---------------------------------------------------------------------------------------------------------------


class GrowableModel(LanguageModel):
    """A language model that can be given more layers, and more parameter tokens where it has any.

    Of its `layers`, those with parameters are the blocks that `num_layers` counts; a copy of one must be one. A block
    says by `outputs` which of its parameters it adds nothing without.
    """

    def pattentions(self) -> dict[str, list[Any]]:
        """The layers with parameter tokens by the name of the option that sizes them; by default there are none."""
        return {}

    def blocks(self) -> list[nn.Module]:
        """The layers that are trained, in their order."""
        return [layer for layer in self.layers if next(layer.parameters(), None) is not None]

    def parameter_token_sizes(self) -> Sizes:
        """Current number of parameter tokens of each group."""
        return {group: layers[0].num_param_tokens for group, layers in self.pattentions().items()}

    def growing_sizes(self) -> Sizes:
        """All that can grow, by the name of its option, and its current size."""
        layers = {LAYERS: len(self.blocks())} if LAYERS in self.hparams else {}
        return self.parameter_token_sizes() | layers

    def initial_sizes(self) -> Sizes:
        """Sizes before the first growth event."""
        return self.growing_sizes() | (self.growth_events[0]["from"] if self.growth_events else {})

    # The event -----------------------------------------------------------------------------------------------------

    def grow(self, sizes: Sizes, optimizer: Optimizer | None, *, step: int, rules: GrowthRules | None = None) -> Event:
        """Grow the named groups to `sizes` and carry the optimizer along; returns the event, which joins the lineage.

        Random numbers come from generators seeded by (seed, layer, step). The event tells the largest relative change
        of the output of each layer with parameter tokens, and of the last features if layers were added, and the
        largest change of a logit, measured on random tokens.
        """
        rules = rules or GrowthRules()
        rules.check()
        before = self.growing_sizes()
        check_sizes(before, sizes)
        if sizes.get(LAYERS, 0) > before.get(LAYERS, 0):
            self._check_outputs(rules)
        with self._measured_change(step) as change:
            self._grow_rows(sizes, optimizer, step, rules)
            for number in range(before.get(LAYERS, 0), sizes.get(LAYERS, 0)):
                self._add_block(self.blocks()[number % before[LAYERS]], optimizer, rules)
        if rules.carry == "reset" and optimizer is not None:
            optimizer.state.clear()
        self.hparams.update(self.growing_sizes())
        if self.compile_layers:
            torch.compiler.reset()  # a layer compiled for more than eight sizes would silently run uncompiled
        groups = self.pattentions()
        event = {
            "step": step, "tokens": self.tokens_seen, "flops": self.flops_spent, "seed": self.seed, "from": before,
            "to": self.growing_sizes(), **asdict(rules), "ramps": rules.ramps,
            "copies": {group: num_copies(before[group], sizes.get(group, 0), rules) for group in groups},
            "tau_from": {group: float(groups[group][0].tau) for group in sizes if group in groups},
        }  # fmt: skip
        self.growth_events.append(event | change)
        return self.growth_events[-1]

    def _grow_rows(self, sizes: Sizes, optimizer: Optimizer | None, step: int, rules: GrowthRules) -> None:
        groups = self.pattentions()
        growing = [(layer, sizes[group]) for group in groups if group in sizes for layer in groups[group]]
        for number, (layer, size) in enumerate(growing):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, number, step))
            for replaced in layer.grow(size, rules, generator):
                if optimizer is not None:
                    carry_state(optimizer, replaced, rules.carry)

    def _check_outputs(self, rules: GrowthRules) -> None:
        """Raise ValueError if blocks are to be added exactly that do not say which parameters are their outputs."""
        if rules.layer_init == "exact" and not all(hasattr(block, "outputs") for block in self.blocks()):
            raise ValueError(
                f"layer_init exact: the blocks of {type(self).__name__} do not say by `outputs` which of their "
                "parameters they add nothing without; use stack"
            )

    def _add_block(self, source: nn.Module, optimizer: Optimizer | None, rules: GrowthRules) -> None:
        """Put a copy of a block on top of all layers."""
        added = copy.deepcopy(source)
        for name in added.outputs if rules.layer_init == "exact" else ():  # type: ignore[union-attr]
            nn.init.zeros_(added.get_parameter(name))
        self.layers.append(added)
        if self.compile_layers:
            added.compile()
        if optimizer is not None:
            copy_state(optimizer, source, added, self, rules.carry)

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
        training, depth = self.training, len(self.layers)
        self.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            hooks = [layer.register_forward_hook(remember) for layer in layers]
            features = self.features(tokens_BT)
            for hook in hooks:
                hook.remove()
            yield change
            grown = self.features(tokens_BT)
            change["logit_change"] = float((self.head(grown) - self.head(features)).abs().max())
            change["relative_change"] = [_relative(layer(seen[id(layer)][0]), seen[id(layer)][1]) for layer in layers]
            if len(self.layers) > depth:
                change["relative_change"].append(_relative(grown, features))
        self.train(training)

    # Training after it ---------------------------------------------------------------------------------------------

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The optimizer's step, after which young rows' updates are scaled by `update_scale`, and tau is ramped."""
        steps, groups = self.trainer.global_step + 1, self.pattentions()  # with this one
        young = [
            (held_rows(p.detach(), rows), scale)
            for group, rows, scale in scaled_updates(
                self.growth_events, list(groups), steps, optimizer.param_groups[0].get("betas")
            )
            for layer in groups[group]
            for p in layer.parameters()
        ]
        before = [weights_nd.clone() for weights_nd, _ in young]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for (weights_nd, scale), before_nd in zip(young, before, strict=True):
            weights_nd.copy_(torch.lerp(before_nd, weights_nd, scale))
        self._raise_tau(steps)

    def _raise_tau(self, steps: int) -> None:
        """Let tau be what it is after so many steps in each group whose last growth ramps it: linear in the re-warm."""
        for group, layers in self.pattentions().items():
            event = next((event for event in reversed(self.growth_events) if group in event["tau_from"]), None)
            if event is None or not event.get("ramps", event["tau"] == "ramped"):
                continue
            start, end = event["tau_from"][group], math.sqrt(event["to"][group])
            part = min(1.0, (steps - event["step"]) / max(1, event["rewarm_steps"]))
            for layer in layers:
                layer.tau.fill_(start + part * (end - start))

    # Checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the lineage, and let the saved hyper-parameters tell the current sizes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["growth_events"] = self.growth_events
        checkpoint["hyper_parameters"] |= self.growing_sizes()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the lineage back; the layers size themselves when their weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        self.growth_events = list(checkpoint[CHECKPOINT_KEY].get("growth_events", []))
        self.hparams.update({group: checkpoint["hyper_parameters"][group] for group in self.growing_sizes()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of layers from what is loaded: a grown checkpoint fits its first configuration, and back."""
        numbers = [key.removeprefix(f"{prefix}layers.").split(".")[0] for key in state_dict]
        depth = 1 + max((int(number) for number in numbers if number.isdecimal()), default=len(self.layers) - 1)
        del self.layers[depth:]
        while len(self.layers) < depth:
            self.layers.append(copy.deepcopy(self.blocks()[-1]))
            if self.compile_layers:
                self.layers[-1].compile()
        super()._load_from_state_dict(state_dict, prefix, *args)


def num_copies(old: int, new: int, rules: GrowthRules) -> int:
    """How often the rows of a group that grows from `old` to `new` are there: whole multiples are split."""
    return max(1, new // old) if rules.init == "split" else 1


def grown_sizes(event: Event) -> str:
    """What an event grew, in words."""
    before, after = event["from"], event["to"]
    return ", ".join(f"{group} {before[group]} -> {size}" for group, size in after.items() if size > before[group])


def grow_checkpoint(
    model: GrowableModel, checkpoint: dict[str, Any], sizes: Sizes, rules: GrowthRules | None = None
) -> Event:
    """Grow `model`, which was loaded from `checkpoint`, and write the result back into `checkpoint`.

    What a fit's Growth would do at the checkpoint's step, bit for bit.
    """
    optimizer = build_optimizer(model, Optim(**checkpoint[CHECKPOINT_KEY]["optim"]))
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    event = model.grow(sizes, optimizer, step=checkpoint["global_step"], rules=rules)
    checkpoint["state_dict"] = model.state_dict()
    checkpoint["optimizer_states"] = [optimizer.state_dict()]
    model.on_save_checkpoint(checkpoint)
    return event


def _relative(new: Tensor, old: Tensor) -> float:
    return float((new - old).norm() / old.norm().clamp_min(1e-12))  # nothing changes relative to nothing
