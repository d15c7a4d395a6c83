"""TokenFormer: every projection attends over learned parameter tokens, and a model grows by adding tokens.

Pattention(X; K, V) = Theta(X K^T) V (arXiv 2410.23168, equations 3 and 4), where Theta normalises the scores over the n
parameter tokens, scales them by tau and applies GeLU. Queries, keys, values, output and feed-forward network are
Pattention layers; the norms have no parameters. Beyond the paper, queries, keys and values may be mixed over a few
positions, and positions be left out. O(n D) a token and layer, plus attention's O(T D).

Shapes: B batch, T time, D width, n parameter tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.carry import Replaced
from models.growth import GrowableModel, GrowthRules, normal_rows, num_copies, root_mean_square, split_values
from models.layers import (
    ROPE_BASE,
    KVCache,
    Mixer,
    Norm,
    Positions,
    cached_attention,
    check_choice,
    check_heads,
    check_positive,
    norm_named,
    rotation_base,
)
from models.local_mixing import LocalMixing, LocalMixingKind
from models.scan import accumulation_dtype

Normalization = Literal["l2_norm_gelu", "gelu_l2_norm", "softmax", "gelu"]


def epsilon(dtype: torch.dtype) -> float:
    """What is added to squared norms, so that scores that are all zero stay zero instead of NaN, in any type."""
    return max(1e-12, torch.finfo(dtype).tiny)


class _L2NormGELU(torch.autograd.Function):
    """GELU(tau * s / |s|) over the last dimension, in fewer passes over memory than autograd would make."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tau: Tensor) -> Tensor:
        """Keep the scaled scores and their scale for the backward pass; norms are taken in at least float32."""
        norm = torch.linalg.vector_norm(scores, dim=-1, keepdim=True, dtype=accumulation_dtype(scores.dtype))
        scale = (tau * torch.rsqrt(norm.square() + epsilon(scores.dtype))).to(scores.dtype)
        scaled = scores * scale
        ctx.save_for_backward(scaled, scale, tau)
        return F.gelu(scaled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """d/ds = scale * (g - scaled <g, scaled> / tau^2), g being the gradient before GELU."""
        scaled, scale, tau = ctx.saved_tensors
        grad = torch.ops.aten.gelu_backward(grad, scaled)
        inner = torch.einsum("...n,...n->...", grad, scaled).unsqueeze(-1) / -tau.to(grad.dtype).square()
        return grad.addcmul_(scaled, inner).mul_(scale), None


def l2_norm_gelu(scores: Tensor, tau: Tensor) -> Tensor:
    """GELU(tau * scores / |scores|) over the last dimension, what the released models train with."""
    return _L2NormGELU.apply(scores, tau)  # type: ignore[no-any-return,no-untyped-call]


def l2_norm_gelu_reference(scores: Tensor, tau: Tensor) -> Tensor:
    """The same as a formula."""
    return F.gelu(tau * scores / (scores.square().sum(-1, keepdim=True) + epsilon(scores.dtype)).sqrt())


def gelu_l2_norm(scores: Tensor, tau: Tensor) -> Tensor:
    """Return tau * GELU(scores) / |GELU(scores)| over the last dimension; norms are taken in at least float32."""
    activated = F.gelu(scores).to(accumulation_dtype(scores.dtype))
    scale = torch.rsqrt(activated.square().sum(-1, keepdim=True) + epsilon(scores.dtype))
    return (tau.to(activated.dtype) * activated * scale).to(scores.dtype)


def scaled_softmax(scores: Tensor, tau: Tensor) -> Tensor:
    """Return tau^2 * softmax(scores). A zero score weighs exp(0) = 1, so that zero keys are not exact."""
    return tau.to(scores.dtype).square() * scores.softmax(-1)


def gelu(scores: Tensor, tau: Tensor) -> Tensor:
    """GELU(scores): no normalisation, so that each Pattention is a dense two-layer network that grows in width."""
    return F.gelu(scores)


NORMALIZATIONS = {
    "l2_norm_gelu": l2_norm_gelu, "gelu_l2_norm": gelu_l2_norm, "softmax": scaled_softmax, "gelu": gelu,
}  # fmt: skip


class Pattention(nn.Module):
    """(..., d_in) -> (..., d_out): attention over learned parameter tokens, in the place of a linear map.

    Args:
        d_in: Width of the input.
        d_out: Width of the output.
        num_param_tokens: Rows of keys and values.
        normalization: Theta; with `softmax` only rows that are split keep the function.
    """

    tau: Tensor

    def __init__(
        self, d_in: int, d_out: int, num_param_tokens: int, normalization: Normalization = "l2_norm_gelu"
    ) -> None:
        super().__init__()
        check_choice("--model.normalization", normalization, Normalization)
        check_positive(num_param_tokens=num_param_tokens)
        self.normalize = NORMALIZATIONS[normalization]
        self.key_param_tokens = nn.Parameter(torch.empty(num_param_tokens, d_in))
        self.value_param_tokens = nn.Parameter(torch.empty(num_param_tokens, d_out))
        self.register_buffer("tau", torch.tensor(math.sqrt(num_param_tokens)))
        self.init_weights()

    def init_weights(self) -> None:
        """Keys N(0, 1 / d_in), values N(0, 1 / n): an input of unit variance gives an output of variance about 0.4."""
        nn.init.normal_(self.key_param_tokens, std=self.key_param_tokens.size(1) ** -0.5)
        nn.init.normal_(self.value_param_tokens, std=self.num_param_tokens**-0.5)

    @property
    def num_param_tokens(self) -> int:
        """Current number of parameter tokens, n."""
        return self.key_param_tokens.size(0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        return self.normalize(F.linear(x, self.key_param_tokens), self.tau) @ self.value_param_tokens

    def flops_per_token(self) -> int:
        """Two matrix products."""
        return 2 * (self.key_param_tokens.numel() + self.value_param_tokens.numel())

    def grow(self, num_param_tokens: int, rules: GrowthRules, generator: torch.Generator) -> Iterator[Replaced]:
        """Grow to `num_param_tokens` rows, and tau with them; yields each new parameter, for the optimizer's sake."""
        copies = num_copies(self.num_param_tokens, num_param_tokens, rules)
        extra = num_param_tokens - copies * self.num_param_tokens
        keys, values = self.key_param_tokens, self.value_param_tokens
        std = {keys: keys.size(1) ** -0.5, values: num_param_tokens**-0.5}
        zero: dict[Any, tuple[str, ...]] = {keys: ("split", "zero_keys", "zeros"), values: ("zero_values", "zeros")}
        for name, old in (("key_param_tokens", keys), ("value_param_tokens", values)):
            if not extra and copies == 1:
                break
            weights = old.detach()
            kept = weights.repeat(copies, 1)
            if old is values:
                kept = split_values(weights, copies, rules.split_noise, generator)
            size = 0.0 if rules.init in zero[old] else std[old] if rules.init == "fresh" else root_mean_square(weights)
            rows = torch.cat((kept, normal_rows(weights, extra, size, generator)))
            new = nn.Parameter(rows, requires_grad=old.requires_grad)
            setattr(self, name, new)
            yield Replaced(old, new, copies, 1 / copies if old is keys else 1.0)
        self.tau.mul_(math.sqrt(copies))
        if rules.tau == "sqrt_n" and not rules.ramps:
            self.tau.fill_(math.sqrt(num_param_tokens))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of parameter tokens from what is loaded: a grown checkpoint fits its first configuration."""
        for name in ("key_param_tokens", "value_param_tokens"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and saved.shape != own.shape and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, nn.Parameter(own.new_empty(saved.shape), requires_grad=own.requires_grad))
        super()._load_from_state_dict(state_dict, prefix, *args)


BlockState = tuple[KVCache, Tensor]


class Block(Mixer):
    """(B, T, D) -> (B, T, D): causal attention and a feed-forward network, all of Pattention, each added to its input.

    Args:
        d_model: Width.
        num_heads: Heads of attention.
        num_param_tokens: Parameter tokens of each of the query, key, value and output projections.
        num_ffn_param_tokens: Parameter tokens of the feed-forward network.
        normalization: Theta of all of them.
        rope_base: Base of the rotary positions' frequencies; None for no positions.
        local_mixing: How queries, keys and values see positions just before.
        norm: Norm, without parameters, of what each part reads.
    """

    outputs = ("out.value_param_tokens", "ffn.value_param_tokens")

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_param_tokens: int,
        num_ffn_param_tokens: int,
        normalization: Normalization,
        rope_base: float | None,
        local_mixing: LocalMixingKind,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        self.d_model, self.num_heads, self.rope_base = d_model, num_heads, rope_base
        self.query, self.key, self.value, self.out = (
            Pattention(d_model, d_model, num_param_tokens, normalization) for _ in range(4)
        )
        self.ffn = Pattention(d_model, d_model, num_ffn_param_tokens, normalization)
        self.local_mixing = LocalMixing(3 * d_model, local_mixing)

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the normalised (..., D)."""
        normed = self.norm(x)
        return self.query(normed), self.key(normed), self.value(normed)

    def read(self, x_BTD: Tensor, state: BlockState | None) -> tuple[Tensor, Any]:
        """(B, T, D) -> (B, T, D) after what the state has seen, and the next state."""
        cache, recent = state or (None, None)
        (q, k, v), recent = self.local_mixing.each(self.projections(x_BTD), recent)
        y_BTD, cache = cached_attention(q, k, v, self.num_heads, self.rope_base, cache)
        x_BTD = x_BTD + self.out(y_BTD)
        return x_BTD + self.ffn(self.norm(x_BTD)), (cache, recent)

    def init_state(self, batch_size: int) -> BlockState:
        """An empty key-value cache, and the local mixing's."""
        like = self.out.key_param_tokens
        cache = KVCache.empty(batch_size, self.num_heads, self.d_model // self.num_heads, like)
        return cache, self.local_mixing.init_state(batch_size)

    def flops_per_token(self, seq_len: int) -> int:
        """Five Pattentions, the local mixing, and two products over `seq_len` positions."""
        layers = (self.query, self.key, self.value, self.out, self.ffn, self.local_mixing)
        return sum(layer.flops_per_token() for layer in layers) + 4 * seq_len * self.d_model

    def state_bytes(self, seq_len: int) -> int:
        """The cache, and the local mixing's."""
        cache = KVCache.num_bytes(seq_len, self.d_model, self.out.key_param_tokens)
        return cache + self.local_mixing.state_bytes()


class TokenFormer(GrowableModel):
    """Transformer whose projections are attention over parameter tokens; adding tokens grows it without retraining.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks.
        num_heads: Heads of attention.
        positions: Rotate queries and keys by their positions, or leave order to the local mixing.
        rope_base: Base of the rotary positions' frequencies; a small one tells near positions apart better.
        local_mixing: Let queries, keys and values see the previous position (shift, two taps) or the last four (conv).
        num_param_tokens: Parameter tokens of each query, key, value and output projection.
        num_ffn_param_tokens: Parameter tokens of each feed-forward network.
        normalization: Theta; `softmax` grows exactly by whole multiples only, `gelu` alone makes dense networks of all
            projections.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too, as the paper's.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile.
    """

    scales_with_width = ("num_heads", "num_param_tokens", "num_ffn_param_tokens")
    searched: ClassVar = {"normalization": ("l2_norm_gelu", "gelu_l2_norm", "softmax")}

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        num_heads: int = 8,
        positions: Positions = "rotary",
        rope_base: float = ROPE_BASE,
        local_mixing: LocalMixingKind = "none",
        num_param_tokens: int = 64,
        num_ffn_param_tokens: int = 512,
        normalization: Normalization = "l2_norm_gelu",
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_heads(d_model, num_heads)
        check_positive(d_model=d_model, num_param_tokens=num_param_tokens, num_ffn_param_tokens=num_ffn_param_tokens)
        base = rotation_base(positions, rope_base, d_model, num_heads)
        blocks = [
            Block(d_model, num_heads, num_param_tokens, num_ffn_param_tokens, normalization, base, local_mixing, norm)
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.save_hyperparameters(logger=False)

    def pattentions(self) -> dict[str, list[Any]]:
        """The projections of attention and the feed-forward networks, by the option that sizes them."""
        return {
            "num_param_tokens": [p for b in self.layers for p in (b.query, b.key, b.value, b.out)],
            "num_ffn_param_tokens": [b.ffn for b in self.layers],
        }
