"""Transformer: the baseline that every claim of the project is measured against.

Pre-norm blocks x + Attention(norm x), x + FFN(norm x) (Vaswani et al., arXiv 1706.03762) with what has since proved
itself at no cost: RMS norm without parameters, QK-norm, rotary positions (hence no maximum length), squared ReLU (arXiv
2109.08668), no biases, output projections that start small. Attention is PyTorch's fused kernel. O(T^2 D + T D^2) a
layer.

Shapes: B batch, T time, D width, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import LanguageModel
from models.layers import (
    ROPE_BASE,
    KVCache,
    TokenShift,
    causal_shift,
    check_heads,
    check_positive,
    init_input,
    init_output,
    rms_norm,
    rotary_attention,
    rotary_attention_step,
)

BlockState = tuple[KVCache, Tensor]


class Block(nn.Module):
    """(B, T, D) -> (B, T, D): causal attention and a feed-forward network, each added to its input.

    Args:
        d_model: Width.
        num_heads: Heads of attention.
        ffn_width: Hidden width of the feed-forward network.
        rope_base: Base of the rotary positions' frequencies.
        token_shift: Let queries, keys and values see the previous position too.
        num_layers: Blocks in the model, whose outputs add up.
    """

    def __init__(
        self, d_model: int, num_heads: int, ffn_width: int, rope_base: float, token_shift: bool, num_layers: int
    ) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.rope_base, self.num_layers = d_model, num_heads, rope_base, num_layers
        self.shift = TokenShift(d_model) if token_shift else None
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
        y: Tensor = self.down(F.relu(self.up(rms_norm(x))).square())
        return x + y

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        normed = rms_norm(x_BTD)
        if self.shift is not None:
            normed = self.shift(normed, causal_shift(normed))
        q, k, v = self.qkv(normed).chunk(3, -1)
        return self.feed_forward(x_BTD + self.out(rotary_attention(q, k, v, self.num_heads, self.rope_base)))

    def init_state(self, batch_size: int) -> BlockState:
        """An empty key-value cache, and the previous normalised input for the token shift."""
        weight = self.out.weight
        cache = KVCache.empty(batch_size, self.num_heads, self.d_model // self.num_heads, weight)
        return cache, weight.new_zeros(batch_size, self.d_model if self.shift is not None else 0)

    def step(self, x_BD: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One position (B, D) of `forward`."""
        cache, previous_BD = state
        normed = rms_norm(x_BD)
        mixed = normed
        if self.shift is not None:
            mixed, previous_BD = self.shift(normed, previous_BD), normed
        q, k, v = self.qkv(mixed).chunk(3, -1)
        y_BD, cache = rotary_attention_step(q, k, v, cache, self.rope_base)
        return self.feed_forward(x_BD + self.out(y_BD)), (cache, previous_BD)

    def flops_per_token(self, seq_len: int) -> int:
        """Four projections, the two of the FFN, and two products over `seq_len` positions."""
        weights = 4 * self.d_model**2 + 2 * self.up.weight.numel()
        return 2 * weights + 4 * seq_len * self.d_model

    def state_bytes(self, seq_len: int) -> int:
        """The cache, and one input where there is a token shift."""
        itemsize = self.out.weight.element_size()
        shift = self.d_model * itemsize if self.shift is not None else 0
        return KVCache.num_bytes(seq_len, self.d_model, itemsize) + shift


class Transformer(LanguageModel):
    """Pre-norm Transformer with rotary positions and fused attention; no maximum length.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks.
        num_heads: Heads of attention.
        rope_base: Base of the rotary positions' frequencies; a small one tells near positions apart better.
        ffn_ratio: Hidden width of the feed-forward network, in widths.
        token_shift: Let attention see each position's predecessor too (two taps), which recall by one layer needs.
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
        rope_base: float = ROPE_BASE,
        ffn_ratio: int = 4,
        token_shift: bool = False,
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(ffn_ratio=ffn_ratio, rope_base=rope_base)
        check_heads(d_model, num_heads)
        width = ffn_ratio * d_model
        blocks = [Block(d_model, num_heads, width, rope_base, token_shift, num_layers) for _ in range(num_layers)]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile)
        self.save_hyperparameters(logger=False)
