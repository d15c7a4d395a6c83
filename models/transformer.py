"""Transformer: the baseline that every claim of the project is measured against.

Pre-norm blocks x + Attention(norm x), x + FFN(norm x) (Vaswani et al., arXiv 1706.03762) with what has since proved
itself at no cost: RMS norm without parameters, QK-norm, rotary positions (hence no maximum length), squared ReLU (arXiv
2109.08668), no biases, output projections that start small. Queries, keys and values may be mixed over a few positions
after their projections, as in Primer (the same paper), and positions be left out. Attention is PyTorch's fused kernel.
O(T^2 D + T D^2) a layer.

Shapes: B batch, T time, D width, H heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.growth import GrowableModel
from models.layers import (
    ROPE_BASE,
    KVCache,
    Mixer,
    Norm,
    Positions,
    cached_attention,
    check_heads,
    check_positive,
    init_input,
    init_output,
    norm_named,
    relu_squared,
    rotation_base,
)
from models.local_mixing import LocalMixing, LocalMixingKind

BlockState = tuple[KVCache, Tensor]


class Block(Mixer):
    """(B, T, D) -> (B, T, D): causal attention and a feed-forward network, each added to its input.

    Args:
        d_model: Width.
        num_heads: Heads of attention.
        ffn_width: Hidden width of the feed-forward network.
        rope_base: Base of the rotary positions' frequencies; None for no positions.
        local_mixing: How queries, keys and values see positions just before.
        norm: Norm, without parameters, of what each part reads.
        num_layers: Blocks in the model, whose outputs add up.
    """

    outputs = ("out.weight", "down.weight")

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        ffn_width: int,
        rope_base: float | None,
        local_mixing: LocalMixingKind,
        norm: Norm,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        self.d_model, self.num_heads, self.rope_base, self.num_layers = d_model, num_heads, rope_base, num_layers
        self.local_mixing = LocalMixing(3 * d_model, local_mixing)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, d_model, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Weights qkv and up: U(-1/sqrt D, 1/sqrt D); out and down: N(0, 1 / (4 fan_in num_layers)), quiet at first."""
        for linear in (self.qkv, self.up):
            init_input(linear.weight)
        for linear in (self.out, self.down):
            init_output(linear.weight, self.num_layers)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Squared-ReLU network of the normalised (..., D), added to it."""
        y: Tensor = self.down(relu_squared(self.up(self.norm(x))))
        return x + y

    def read(self, x_BTD: Tensor, state: BlockState | None) -> tuple[Tensor, Any]:
        """(B, T, D) -> (B, T, D) after what the state has seen, and the next state."""
        cache, recent = state or (None, None)
        qkv, recent = self.local_mixing.read(self.qkv(self.norm(x_BTD)), recent)
        q, k, v = qkv.chunk(3, -1)
        y_BTD, cache = cached_attention(q, k, v, self.num_heads, self.rope_base, cache)
        return self.feed_forward(x_BTD + self.out(y_BTD)), (cache, recent)

    def init_state(self, batch_size: int) -> BlockState:
        """An empty key-value cache, and the local mixing's."""
        cache = KVCache.empty(batch_size, self.num_heads, self.d_model // self.num_heads, self.out.weight)
        return cache, self.local_mixing.init_state(batch_size)

    def flops_per_token(self, seq_len: int) -> int:
        """Four projections, the two of the FFN, two products over `seq_len` positions, and the local mixing."""
        weights = 4 * self.d_model**2 + 2 * self.up.weight.numel()
        return 2 * weights + 4 * seq_len * self.d_model + self.local_mixing.flops_per_token()

    def state_bytes(self, seq_len: int) -> int:
        """The cache, and the local mixing's."""
        cache = KVCache.num_bytes(seq_len, self.d_model, self.out.weight)
        return cache + self.local_mixing.state_bytes()


class Transformer(GrowableModel):
    """Pre-norm Transformer with fused attention, rotary positions or none; no maximum length.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks.
        num_heads: Heads of attention.
        positions: Rotate queries and keys by their positions, or leave order to the local mixing.
        rope_base: Base of the rotary positions' frequencies; a small one tells near positions apart better.
        local_mixing: Let queries, keys and values see the previous position (shift, two taps) or the last four (conv);
            recall by one layer needs either.
        ffn_ratio: Hidden width of the feed-forward network, in widths.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile.
    """

    scales_with_width = ("num_heads",)

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
        ffn_ratio: int = 4,
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(d_model=d_model, ffn_ratio=ffn_ratio)
        check_heads(d_model, num_heads)
        base, width = rotation_base(positions, rope_base, d_model, num_heads), ffn_ratio * d_model
        blocks = [Block(d_model, num_heads, width, base, local_mixing, norm, num_layers) for _ in range(num_layers)]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.save_hyperparameters(logger=False)
