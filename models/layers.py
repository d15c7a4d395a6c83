"""What several models share: the mixer contract, norms, causal attention and its key-value cache.

Each is a pure function beside the streaming form that must equal it. Rotary embedding rotates the pair (x_i, x_{i+d/2})
of position t by t * base^(-2i/d) (Su et al., arXiv 2104.09864, in the half-split layout), computed for just the
positions at hand: there is no table, hence no maximum length.

Shapes: B batch, T time, D width, H heads, K width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right

Norm = Literal["rms", "layer"]
Positions = Literal["rotary", "none"]
QUERY_BLOCK = 512  # positions that attend at once to a cache before them
MIN_CACHE = 16  # positions a fresh cache has room for; it doubles from there
ROPE_BASE = 10_000.0  # the slowest pair turns once in about 2 pi times as many positions
# Of the scores of normalised queries and keys, over the usual 1 / sqrt(K). A score is then at most 2.9 sqrt(K), which
# bounds how sharp attention can be: with heads of width 16, as by default, e^11.6 is 1e5 times the weight of a score of
# zero; a gain of 1 would stop at e^4 = 55 times. QK-norm (arXiv 2010.04245) begins at log2(L^2 - L) for texts of L
# tokens, which is as much at L = 56 for that width, and at L = 295 for a width of 32.
QK_GAIN = 2.9


class Layer(Protocol):
    """The mixer contract: a causal map over time and its streaming form, which equals it.

    What is shared comes from a model that gives its layers something besides, as TrajectoryLM its links.
    """

    def __call__(self, x_BTD: Tensor, *shared: Any) -> Tensor:
        """All positions at once."""

    def init_state(self, batch_size: int) -> Any:
        """State before the first token."""

    def prefill(self, x_BTD: Tensor, state: Any, *shared: Any) -> tuple[Tensor, Any]:
        """Several positions at once, after those that the state has seen."""

    def step(self, x_BD: Tensor, state: Any, *shared: Any) -> tuple[Tensor, Any]:
        """One position."""

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of one token of a sequence of `seq_len`."""

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one sequence's state after `seq_len` tokens."""


class Mixer(nn.Module, ABC):
    """A layer that is one function, `read`, of which the three forms of the mixer contract are cases."""

    @abstractmethod
    def read(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """All positions (B, T, D), T >= 1, after those that the state has seen, and the next state.

        With None for a state these are the first ones, and what comes back for a state is of no use.
        """

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), from the start."""
        return self.read(x_BTD, None)[0]

    def prefill(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, T, D) and a state -> (B, T, D) and the next state, as T calls of `step` would give."""
        return self.read(x_BTD, state)

    def step(self, x_BD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position (B, D) of `forward`, and the next state."""
        y_BTD, state = self.read(x_BD.unsqueeze(1), state)
        return y_BTD.squeeze(1), state


def kept(x: Tensor) -> Tensor:
    """A copy of what a state keeps of a larger tensor, which is freed; in memory it is as if it had been made alone."""
    return x.clone(memory_format=torch.contiguous_format)


class _ReluSquared(torch.autograd.Function):
    """Keeps ReLU(x) alone, of which the gradient is one product: PyTorch would need a power and two more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """2 ReLU(x), times the gradient."""
        (positive,) = ctx.saved_tensors
        return cast(Tensor, (gradients[0] * positive).mul_(2))


def relu_squared(x: Tensor) -> Tensor:
    """ReLU(x)^2 (Primer, arXiv 2109.08668): (..., D) -> (..., D)."""
    if not x.requires_grad:  # in decoding, where calls are what takes the time
        positive = F.relu(x)
        return positive * positive
    return cast(Tensor, _ReluSquared.apply(x))  # type: ignore[no-untyped-call]


def rms_norm(x: Tensor) -> Tensor:
    """Divide (..., D) by its root mean square, without parameters."""
    normed: Tensor = F.rms_norm(x, (x.size(-1),))
    return normed


def layer_norm(x: Tensor) -> Tensor:
    """Take the mean of (..., D) away and divide by the standard deviation, without parameters."""
    return F.layer_norm(x, (x.size(-1),))


NORMS = {"rms": rms_norm, "layer": layer_norm}


def norm_named(name: Norm) -> Callable[[Tensor], Tensor]:
    """The norm, without parameters, that an option names: of what each part of a block reads, and the head."""
    check_choice("--model.norm", name, Norm)
    return NORMS[name]


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, D / H), a view."""
    x_BHTK: Tensor = x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return x_BHTK


def rotation(like: Tensor, start: int | Tensor, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, K) for positions start .. start + T - 1 of `like` (..., T, K), in its type.

    Of a pair of features the first has the negative sine.
    """
    length, half = like.size(-2), like.size(-1) // 2
    position_T = torch.arange(length, device=like.device, dtype=torch.float32) + start
    frequency = base ** (torch.arange(half, device=like.device, dtype=torch.float32) / -half)
    angle_TK = position_T[:, None] * torch.cat((-frequency, frequency))
    return angle_TK.cos().to(like.dtype), angle_TK.sin().to(like.dtype)


def rotate(x: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + K / 2}) of (..., T, K) by what `rotation` gives."""
    return torch.addcmul(x * cos_TK, x.roll(x.size(-1) // 2, -1), sin_TK)


def rotary(x: Tensor, start: int | Tensor = 0, base: float = ROPE_BASE) -> Tensor:
    """Rotate (..., T, K) by its positions start .. start + T - 1; K must be even."""
    return rotate(x, *rotation(x, start, base))


def place(q: Tensor, k: Tensor, start: int | Tensor, base: float | None) -> tuple[Tensor, Tensor]:
    """Queries and keys of unit root mean square (QK-norm, arXiv 2010.04245), rotated by positions if there is a base.

    Both are (B, H, T, K), of positions from `start` on.
    """
    q, k = rms_norm(q), rms_norm(k)
    if base is None:
        return q, k
    turn = rotation(q, start, base)
    return rotate(q, *turn), rotate(k, *turn)


def causal_attention(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int, rope_base: float | None = ROPE_BASE
) -> Tensor:
    """Softmax attention with QK-norm and rotary positions, or none (base None): three (B, T, D) -> (B, T, D)."""
    return cached_attention(q_BTD, k_BTD, v_BTD, num_heads, rope_base, None)[0]


def causal_attention_reference(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int, rope_base: float | None = ROPE_BASE
) -> Tensor:
    """The same, one query at a time, with rotations written as complex products."""
    width = q_BTD.size(-1) // num_heads

    def rotate(x: Tensor, t: int) -> Tensor:
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        if rope_base is None:
            return x.double()
        frequency = rope_base ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
        turned = torch.complex(*x.double().split(width // 2, -1)) * torch.polar(torch.ones(()).double(), t * frequency)
        return torch.cat((turned.real, turned.imag), -1)

    q, k, v = (x.unflatten(-1, (num_heads, width)) for x in (q_BTD, k_BTD, v_BTD))
    outputs = []
    for t in range(q_BTD.size(1)):
        keys = torch.stack([rotate(k[:, s], s) for s in range(t + 1)], 1)
        score = QK_GAIN * (rotate(q[:, t], t).unsqueeze(1) * keys).sum(-1) / width**0.5
        outputs.append((score.softmax(1).unsqueeze(-1) * v[:, : t + 1].double()).sum(1).flatten(1))
    return torch.stack(outputs, 1).to(q_BTD.dtype)


class KVCache(NamedTuple):
    """Keys (already placed) and values seen so far; room doubles when it is used up.

    keys, values: (B, H, capacity, K), of which the first `length` positions are filled. The length is a tensor where
    shapes must not change from step to step: then the room is fixed, and attention sees all of it through a mask.
    """

    keys: Tensor
    values: Tensor
    length: int | Tensor

    @classmethod
    def empty(cls, batch_size: int, num_heads: int, head_width: int, like: Tensor) -> KVCache:
        """A cache without positions, on the device of a weight and in the type that it is multiplied in."""
        shape = (batch_size, num_heads, MIN_CACHE, head_width)
        room = like.new_empty(shape, dtype=product_dtype(like))
        return cls(room, room.clone(), 0)

    @staticmethod
    def capacity(length: int) -> int:
        """Positions that there is room for after `length` of them."""
        return max(MIN_CACHE, 1 << (length - 1).bit_length())

    def with_room(self, length: int) -> KVCache:
        """The cache with room for at least `length` positions; the given one must not be used any more."""
        return self if length <= self.keys.size(2) else self.resized(self.capacity(length))

    def resized(self, capacity: int) -> KVCache:
        """The cache with room for `capacity` positions; what is not filled is zero."""
        assert not isinstance(self.length, Tensor)
        room = (0, 0, 0, capacity - self.length)
        keys, values = (F.pad(x[:, :, : self.length], room) for x in (self.keys, self.values))
        return KVCache(keys, values, self.length)

    def fixed(self, length: int) -> KVCache:
        """The cache with room for at least `length` positions, which no step changes the shape of.

        There is hardly more, as attention takes as long as there is room. What is not filled must be finite: its weight
        of zero would not make up for it.
        """
        cache = self.resized(-(-length // MIN_CACHE) * MIN_CACHE)
        return cache._replace(length=torch.tensor(self.length, device=self.keys.device))

    def extended(self, k_BHTK: Tensor, v_BHTK: Tensor) -> KVCache:
        """The cache with T more positions; the given one must not be used any more."""
        length = self.length + k_BHTK.size(2)
        if isinstance(length, Tensor):
            at_T = self.length + torch.arange(k_BHTK.size(2), device=k_BHTK.device)
            self.keys.index_copy_(2, at_T, k_BHTK.to(self.keys.dtype))
            self.values.index_copy_(2, at_T, v_BHTK.to(self.values.dtype))
            return self._replace(length=length)
        keys, values, _ = self.with_room(length)
        keys[:, :, self.length : length], values[:, :, self.length : length] = k_BHTK, v_BHTK
        return KVCache(keys, values, length)

    @staticmethod
    def num_bytes(seq_len: int, width: int, like: Tensor) -> int:
        """Bytes of one sequence's cache, on the terms of `empty`, after `seq_len` tokens of `width` = H * K numbers."""
        return 2 * KVCache.capacity(seq_len) * width * product_dtype(like).itemsize


def product_dtype(weight: Tensor) -> torch.dtype:
    """The type that a weight is multiplied in: its own, or that of autocast where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def cached_attention(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int, rope_base: float | None, cache: KVCache | None
) -> tuple[Tensor, KVCache | None]:
    """`causal_attention` of T positions after those of a cache, and the longer cache; None stands for none so far."""
    q, k, v = (split_heads(x, num_heads) for x in (q_BTD, k_BTD, v_BTD))
    start, T = 0 if cache is None else cache.length, q.size(2)
    q, k = place(q, k, start, rope_base)
    scale = QK_GAIN * q.size(-1) ** -0.5
    attend = partial(F.scaled_dot_product_attention, scale=scale)
    if cache is not None:
        cache = cache.extended(k, v)
    if cache is None or (isinstance(start, int) and not start):
        y_BHTK = attend(q, k, v, is_causal=T > 1)
    elif isinstance(cache.length, int):
        outputs = []
        for begin in range(0, T, QUERY_BLOCK):  # so that a mask is never large
            block, end = q[:, :, begin : begin + QUERY_BLOCK], start + min(T, begin + QUERY_BLOCK)
            mask = causal_lower_right(block.size(2), end) if T > 1 else None
            outputs.append(attend(block, cache.keys[:, :, :end], cache.values[:, :, :end], mask))
        y_BHTK = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
    else:
        place_S = torch.arange(cache.keys.size(2), device=q.device)
        y_BHTK = attend(q, cache.keys, cache.values, place_S <= (start + place_S[:T])[:, None])
    return y_BHTK.transpose(1, 2).flatten(2), cache


def with_fixed_shapes(state: Any, length: int) -> Any:
    """A streaming state in which no step changes a shape or a number, until `length` positions have been read.

    What has such numbers, or grows, says by a method `fixed(length)` what takes its place.
    """
    if hasattr(state, "fixed"):
        return state.fixed(length)
    if type(state) in (list, tuple):
        return type(state)(with_fixed_shapes(part, length) for part in state)
    return state


def init_input(weight: Tensor) -> None:
    """Draw a matrix that reads a normalised input, U(-1/sqrt fan_in, 1/sqrt fan_in)."""
    nn.init.uniform_(weight, -(weight.size(1) ** -0.5), weight.size(1) ** -0.5)


def init_output(weight: Tensor, num_outputs: int) -> None:
    """Draw a matrix, one of `num_outputs` whose outputs add up, quiet: N(0, 1 / (4 fan_in num_outputs))."""
    nn.init.normal_(weight, std=0.5 * (weight.size(1) * num_outputs) ** -0.5)


def check_heads(d_model: int, num_heads: int) -> None:
    """Raise ValueError unless `num_heads` divides `d_model`."""
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(
            f"--model.d_model {d_model} does not split into --model.num_heads {num_heads} heads; choose d_model a "
            f"multiple of {max(num_heads, 1)} or another num_heads"
        )


def rotation_base(positions: Positions, rope_base: float, d_model: int, num_heads: int = 1) -> float | None:
    """The base by which heads of D / H features are rotated, None for no positions; ValueError if options clash."""
    check_choice("--model.positions", positions, Positions)
    check_positive(rope_base=rope_base)
    if positions == "rotary" and d_model // num_heads % 2:
        heads = f" with --model.num_heads {num_heads}" if num_heads > 1 else ""
        raise ValueError(
            f"--model.d_model {d_model}{heads} must be a multiple of {2 * num_heads}, as --model.positions rotary "
            "turns pairs of features; choose another or --model.positions none"
        )
    if positions == "none" and rope_base != ROPE_BASE:
        raise ValueError(
            f"--model.rope_base {rope_base:g} has no use with --model.positions none, which rotates nothing; leave it "
            f"at {ROPE_BASE:g} or choose --model.positions rotary"
        )
    return rope_base if positions == "rotary" else None


def check_positive(**options: int | float) -> None:
    """Raise ValueError naming the first model option that is not above zero."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"--model.{name} is {value}; it must be at least 1")


def check_choice(option: str, value: str, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the Literal type's `choices`."""
    if value not in get_args(choices):
        raise ValueError(f"{option} is {value!r}; choose one of {', '.join(get_args(choices))}")
