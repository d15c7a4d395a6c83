"""What several models share: the mixer contract, norms, causal attention and its key-value cache.

Each is a pure function beside the streaming form that must equal it. Rotary embedding rotates the pair (x_i, x_{i+d/2})
of position t by t * base^(-2i/d) (Su et al., arXiv 2104.09864, in the half-split layout), computed for just the
positions at hand: there is no table, hence no maximum length.

Shapes: B batch, T time, D width, H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Positions = Literal["rotary", "none"]
MIN_CACHE = 16  # positions a fresh cache has room for; it doubles from there
ROPE_BASE = 10_000.0  # the slowest pair turns once in about 2 pi times as many positions
# Of the scores of normalised queries and keys, over the usual 1 / sqrt(K). A score is then at most 2.9 sqrt(K), which
# bounds how sharp attention can be: with heads of width 16, as by default, e^11.6 is 1e5 times the weight of a score of
# zero; a gain of 1 would stop at e^4 = 55 times. QK-norm (arXiv 2010.04245) begins at log2(L^2 - L) for texts of L
# tokens, which is as much at L = 56 for that width, and at L = 295 for a width of 32.
QK_GAIN = 2.9


class Layer(Protocol):
    """The mixer contract: a causal map over time and its streaming form, which equals it."""

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """All positions at once."""

    def init_state(self, batch_size: int) -> Any:
        """State before the first token."""

    def step(self, x_BD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position."""

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of one token of a sequence of `seq_len`."""

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one sequence's state after `seq_len` tokens."""


def rms_norm(x: Tensor) -> Tensor:
    """Divide (..., D) by its root mean square, without parameters."""
    normed: Tensor = F.rms_norm(x, (x.size(-1),))
    return normed


def layer_norm(x: Tensor) -> Tensor:
    """Take the mean of (..., D) away and divide by the standard deviation, without parameters."""
    return F.layer_norm(x, (x.size(-1),))


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, D / H), a view."""
    x_BHTK: Tensor = x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return x_BHTK


def rotary(x_BHTK: Tensor, start: int = 0, base: float = ROPE_BASE) -> Tensor:
    """Rotate (B, H, T, K) by its positions start .. start + T - 1; K must be even."""
    length, half = x_BHTK.size(-2), x_BHTK.size(-1) // 2
    position_T = torch.arange(start, start + length, device=x_BHTK.device, dtype=torch.float32)
    exponent = torch.arange(half, device=x_BHTK.device, dtype=torch.float32) / half
    angle_TK = position_T[:, None] * base**-exponent
    cos, sin = angle_TK.cos().to(x_BHTK.dtype), angle_TK.sin().to(x_BHTK.dtype)
    left, right = x_BHTK.split(half, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def place(x_BHTK: Tensor, start: int, base: float | None) -> Tensor:
    """Queries or keys of unit root mean square (QK-norm, arXiv 2010.04245), rotated by positions if there is a base."""
    x_BHTK = rms_norm(x_BHTK)
    return x_BHTK if base is None else rotary(x_BHTK, start, base)


def causal_attention(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int, rope_base: float | None = ROPE_BASE
) -> Tensor:
    """Softmax attention with QK-norm and rotary positions, or none (base None): three (B, T, D) -> (B, T, D)."""
    q, k, v = (split_heads(x, num_heads) for x in (q_BTD, k_BTD, v_BTD))
    scale = QK_GAIN * q.size(-1) ** -0.5
    y_BHTK = F.scaled_dot_product_attention(
        place(q, 0, rope_base), place(k, 0, rope_base), v, is_causal=True, scale=scale
    )
    return y_BHTK.transpose(1, 2).flatten(2)


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

    keys, values: (B, H, capacity, K), of which the first `length` positions are filled.
    """

    keys: Tensor
    values: Tensor
    length: int

    @classmethod
    def empty(cls, batch_size: int, num_heads: int, head_width: int, like: Tensor) -> KVCache:
        """A cache without positions, with the dtype and device of `like`."""
        room = like.new_empty(batch_size, num_heads, MIN_CACHE, head_width)
        return cls(room, room.clone(), 0)

    def append(self, k_BHK: Tensor, v_BHK: Tensor) -> KVCache:
        """The cache with one more position; the given one must not be used any more."""
        keys, values = self.keys, self.values
        if self.length == keys.size(2):
            keys, values = (torch.cat((x, torch.empty_like(x)), 2) for x in (keys, values))
        keys[:, :, self.length], values[:, :, self.length] = k_BHK, v_BHK
        return KVCache(keys, values, self.length + 1)

    @staticmethod
    def num_bytes(seq_len: int, width: int, itemsize: int) -> int:
        """Bytes of one sequence's cache after `seq_len` tokens of `width` = H * K numbers."""
        capacity = MIN_CACHE
        while capacity < seq_len:
            capacity *= 2
        return 2 * capacity * width * itemsize


def causal_attention_step(
    q_BD: Tensor, k_BD: Tensor, v_BD: Tensor, cache: KVCache, rope_base: float | None = ROPE_BASE
) -> tuple[Tensor, KVCache]:
    """One position of `causal_attention`: three (B, D) and the cache -> (B, D) and the longer cache."""
    num_heads = cache.keys.size(1)
    q, k, v = (x.unflatten(-1, (num_heads, 1, -1)) for x in (q_BD, k_BD, v_BD))
    longer = cache.append(place(k, cache.length, rope_base).squeeze(2), v.squeeze(2))
    keys, values = (x[:, :, : longer.length] for x in (longer.keys, longer.values))
    scale = QK_GAIN * q.size(-1) ** -0.5
    y_BH1K = F.scaled_dot_product_attention(place(q, cache.length, rope_base), keys, values, scale=scale)
    return y_BH1K.flatten(1), longer


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
