"""Palm: attention on detail, a gated running sum in the place of attention, in layers that are applied repeatedly.

Queries and keys are normalised and placed as attention's are, but every channel attends alone: y_t = ReLU(q_t)
* sum_{s<=t} sigmoid(k_s) * v_s, or the form of AFT-simple (Zhai et al., arXiv 2105.14103, equation 3, causal), y_t =
sigmoid(q_t) * sum_{s<=t} exp(k_s) v_s / sum_{s<=t} exp(k_s); a single-layer SwiGLU reads y. The mixer and a SwiGLU
network (Shazeer, arXiv 2002.05202) are parallel branches of a block, as in PaLM (arXiv 2204.02311, section 2), and
blocks share their weights over recursions. After Srivastava's Palm (github.com/SrijanSriv211/Palm), whose mixer attends
over a fixed window. O(T D (D + rank)) a block, without a maximum length; the state is one or two running sums.

Shapes: B batch, T time, D width, E width of queries, keys and values, H heads, K width of a head, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import HEAD_STD
from models.growth import GrowableModel
from models.layers import (
    ROPE_BASE,
    Layer,
    Mixer,
    Norm,
    Positions,
    check_choice,
    check_heads,
    check_positive,
    init_input,
    init_output,
    kept,
    norm_named,
    place,
    relu_squared,
    rotation_base,
    split_heads,
)
from models.local_mixing import LocalMixing, LocalMixingKind
from models.scan import accumulation_dtype, cumulative_sum

Mixing = Literal["detail", "aft"]
Recursion = Literal["each", "all"]


def attention_on_detail(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, before_BD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ReLU(q_t) * sum_{s<=t} sigmoid(k_s) * v_s, channel by channel: three (B, T, D) -> (B, T, D), and the sums.

    The sums (B, T, D) go on from `before_BD`, if anything came before.
    """
    values_BTD = cumulative_sum(k_BTD.sigmoid() * v_BTD, before_BD=before_BD)
    return F.relu(q_BTD) * values_BTD, values_BTD


def attention_free(
    q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, bound: float, before: Sequence[Tensor | None] = (None, None)
) -> tuple[Tensor, Tensor, Tensor]:
    """AFT-simple, causal: sigmoid(q_t) times the mean of v_s, s <= t, weighted by exp(k_s); (B, T, D) all of them.

    Keys are at most `bound`, as QK-norm makes them: exp(k - bound) never overflows, however long the sequence, and
    down to k = -bound, with a bound of 40, it is far from underflow. With the result come the sums of weighted values
    and of weights, which go on from those `before`, (B, D) each, if anything came before.
    """
    weight = k_BTD.to(accumulation_dtype(k_BTD.dtype)).sub(bound).exp()
    values_BTD = cumulative_sum(weight * v_BTD, before_BD=before[0])
    weights_BTD = cumulative_sum(weight, before_BD=before[1])
    return q_BTD.sigmoid() * values_BTD / weights_BTD, values_BTD, weights_BTD


def mixing_reference(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, mixing: Mixing) -> Tensor:
    """Either of the two, one position at a time, as the formulas say it."""
    outputs = []
    for t in range(q_BTD.size(1)):
        k, v = k_BTD[:, : t + 1], v_BTD[:, : t + 1]
        if mixing == "detail":
            outputs.append(F.relu(q_BTD[:, t]) * (k.sigmoid() * v).sum(1))
        else:
            outputs.append(q_BTD[:, t].sigmoid() * (k.softmax(1) * v).sum(1))
    return torch.stack(outputs, 1)


def low_rank(d_in: int, d_out: int, rank: int | None) -> nn.Module:
    """A linear map (..., d_in) -> (..., d_out) by two matrices, through `rank` features; by one if `rank` is None."""
    if rank is None:
        return nn.Linear(d_in, d_out, bias=False)
    return nn.Sequential(nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out, bias=False))


class FactorisedLinear(nn.Module):
    """(..., D) -> (..., E) through `rank` squared ReLUs; a plain linear map if `rank` is None."""

    def __init__(self, d_model: int, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, rank, bias=False) if rank else None
        self.up = nn.Linear(rank or d_model, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        y: Tensor = self.up(x if self.down is None else relu_squared(self.down(x)))
        return y


class FactorisedEmbedding(nn.Embedding):
    """Tokens -> (..., D) by a table of `rank` columns and one matrix for all tokens (ALBERT, arXiv 1909.11942)."""

    def __init__(self, vocab_size: int, d_model: int, rank: int) -> None:
        super().__init__(vocab_size, rank)
        self.up = nn.Parameter(torch.randn(d_model, rank) * rank**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (...) -> (..., D)."""
        return F.linear(super().forward(tokens), self.up)


class FactorisedHead(nn.Module):
    """(..., D) -> logits (..., V) by a matrix `up` (D, R) and a table (V, R): its own, or those of an embedding.

    The table is drawn from N(0, 0.02), as a full head is, an embedding's again: it is normalised before use.
    """

    def __init__(self, weight: nn.Parameter, up: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.up = weight, up
        nn.init.normal_(self.weight, std=HEAD_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(x @ self.up, self.weight)


class RunningSums(NamedTuple):
    """What a block remembers: sums over the positions so far, in float32 at least, and their number.

    values: (B, E). weights: (B, E), or (B, 0) where the mixing needs none. recent: the local mixing's state. length:
    int64, without dimensions.
    """

    values: Tensor
    weights: Tensor
    recent: Tensor
    length: Tensor


class Block(Mixer):
    """(B, T, D) -> (B, T, D): x + Attention(norm x) + SwiGLU(norm x).

    Args:
        d_model: Width.
        num_heads: Heads, within each of which queries and keys are normalised and placed.
        width: Width E of queries, keys and values.
        rank: Rank of the factorised queries, keys and values; None for full matrices.
        output_rank: Rank of the two factorised matrices that read what was mixed; None for full ones.
        ffn_width: Hidden width of the SwiGLU network.
        mixing: Attention on detail, or AFT-simple.
        rope_base: Base of the rotary positions' frequencies; None for no positions.
        local_mixing: How queries, keys and values see positions just before.
        norm: Norm, without parameters, of what each branch reads.
        num_outputs: Blocks applied in the model, whose outputs add up.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        width: int,
        rank: int | None,
        output_rank: int | None,
        ffn_width: int,
        mixing: Mixing,
        rope_base: float | None,
        local_mixing: LocalMixingKind,
        norm: Norm,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        self.width, self.num_heads, self.rope_base, self.num_outputs = width, num_heads, rope_base, num_outputs
        self.mixing = mixing
        self.bound = float((width // num_heads) ** 0.5)  # of a key of unit root mean square, rotated
        self.local_mixing = LocalMixing(3 * width, local_mixing)
        self.query, self.key, self.value = (FactorisedLinear(d_model, width, rank) for _ in range(3))
        self.mix_gate = low_rank(width, d_model, output_rank)
        self.mix_out = low_rank(width, d_model, output_rank)
        self.gate = nn.Linear(d_model, ffn_width, bias=False)
        self.up = nn.Linear(d_model, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, d_model, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Every matrix U(-1/sqrt fan_in, 1/sqrt fan_in), except `outputs`: N(0, 1 / (4 fan_in num_outputs))."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            init_input(linear.weight)
        for name in self.outputs:
            init_output(self.get_parameter(name), self.num_outputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The matrices that it adds nothing without, of a factorised one the second factor."""
        return "mix_out.weight" if isinstance(self.mix_out, nn.Linear) else "mix_out.1.weight", "down.weight"

    def projections(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the normed (..., D)."""
        return self.query(normed), self.key(normed), self.value(normed)

    def place(self, q_BTE: Tensor, k_BTE: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, T, E), head by head of unit root mean square, with rotary positions if there are any."""
        q, k = (split_heads(x, self.num_heads) for x in (q_BTE, k_BTE))
        q, k = place(q, k, start, self.rope_base)
        return q.transpose(1, 2).flatten(2), k.transpose(1, 2).flatten(2)

    def add_branches(self, x: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        """Add to x (..., D) the single-layer SwiGLU of the mixed (..., E) and the SwiGLU network of the normed x."""
        mixed = self.norm(mixed).to(x.dtype)
        attention = F.silu(self.mix_gate(mixed)) * self.mix_out(mixed)
        y: Tensor = x + attention + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return y

    def read(self, x_BTD: Tensor, state: RunningSums | None) -> tuple[Tensor, Any]:
        """(B, T, D) -> (B, T, D) after what the state has seen, and the next state."""
        start, before, recent = (state.length, state[:2], state.recent) if state else (0, (None, None), None)
        normed = self.norm(x_BTD)
        (q, k, v), recent = self.local_mixing.each(self.projections(normed), recent)
        q, k = self.place(q, k, start)
        if self.mixing == "detail":
            mixed, *sums = attention_on_detail(q, k, v, before[0])
        else:
            mixed, *sums = attention_free(q, k, v, self.bound, before)
        y_BTD = self.add_branches(x_BTD, normed, mixed)
        if state is None:
            return y_BTD, None
        values, *weights = (kept(sum_BTE[:, -1]) for sum_BTE in sums)
        length = state.length + x_BTD.size(1)
        return y_BTD, RunningSums(values, weights[0] if weights else state.weights, recent, length)

    def init_state(self, batch_size: int) -> RunningSums:
        """Sums over no positions."""
        dtype = accumulation_dtype(self.down.weight.dtype)
        values = self.down.weight.new_zeros(batch_size, self.width, dtype=dtype)
        weights, recent = values if self.mixing == "aft" else values[:, :0], self.local_mixing.init_state(batch_size)
        return RunningSums(values, weights, recent, values.new_zeros((), dtype=torch.int64))

    def flops_per_token(self, seq_len: int) -> int:
        """The matrices, all of them linear maps, and the local mixing."""
        weights = sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)
        return 2 * weights + self.local_mixing.flops_per_token()

    def state_bytes(self, seq_len: int) -> int:
        """One sum, or two, in float32 at least, the local mixing's, and the length."""
        itemsize = accumulation_dtype(self.down.weight.dtype).itemsize
        sums = self.width * (2 if self.mixing == "aft" else 1) * itemsize
        return sums + self.local_mixing.state_bytes() + torch.int64.itemsize


def check_ranks(tie_embeddings: bool, **ranks: int | None) -> None:
    """Raise ValueError naming a rank that is not above zero, or that of a head which is the embedding's."""
    check_positive(**{name: rank for name, rank in ranks.items() if rank is not None})
    if tie_embeddings and ranks["head_rank"] is not None:
        raise ValueError(
            f"--model.head_rank {ranks['head_rank']} has no use with --model.tie_embeddings true, where the head is "
            "the embedding's; leave it null, and embedding_rank is the rank of both, or choose tie_embeddings false"
        )


class Palm(GrowableModel):
    """Parallel blocks of cumulative attention and SwiGLU, applied recursively; no maximum length, constant state.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Distinct blocks.
        num_recursions: Times each block is applied, with the same weights.
        recursion: Repeat each block in its place, or all of them one after the other.
        num_heads: Heads, within each of which queries and keys are normalised and rotated.
        qkv_ratio: Width of queries, keys and values, in widths; the author's default is 4.
        rank: Rank of the factorised queries, keys and values; null for full matrices.
        output_rank: Rank of the two factorised matrices that read what was mixed; null for full matrices.
        embedding_rank: Rank of the factorised embedding; null for a full table.
        head_rank: Rank of a factorised head of its own; null for a full matrix, or the embedding's if they are tied.
        mixing: Attention on detail, ReLU(q) sum sigmoid(k) v, or AFT-simple, sigmoid(q) sum exp(k) v / sum exp(k).
        positions: Rotate queries and keys by their positions, or leave order to the local mixing.
        rope_base: Base of the rotary positions' frequencies.
        local_mixing: Let queries, keys and values see the previous position (shift, two taps) or the last four (conv).
        ffn_ratio: Hidden width of the SwiGLU network, in widths.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too.
        tie_embeddings: Use the embedding's matrix as the head, of a factorised embedding both factors.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile.
    """

    scales_with_width = ("num_heads", "rank", "output_rank", "embedding_rank", "head_rank")
    searched: ClassVar = {"mixing": ("detail", "aft")}

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        num_recursions: int = 2,
        recursion: Recursion = "all",
        num_heads: int = 8,
        qkv_ratio: int = 1,
        rank: int | None = 32,
        output_rank: int | None = None,
        embedding_rank: int | None = 32,
        head_rank: int | None = None,
        mixing: Mixing = "detail",
        positions: Positions = "rotary",
        rope_base: float = ROPE_BASE,
        local_mixing: LocalMixingKind = "none",
        ffn_ratio: int = 2,
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(d_model=d_model, num_recursions=num_recursions, qkv_ratio=qkv_ratio, ffn_ratio=ffn_ratio)
        ranks = {"rank": rank, "output_rank": output_rank, "embedding_rank": embedding_rank, "head_rank": head_rank}
        check_ranks(tie_embeddings, **ranks)
        check_choice("--model.mixing", mixing, Mixing)
        check_choice("--model.recursion", recursion, Recursion)
        check_heads(d_model, num_heads)
        base = rotation_base(positions, rope_base, d_model, num_heads)
        blocks = [
            Block(
                d_model,
                num_heads,
                qkv_ratio * d_model,
                rank,
                output_rank,
                ffn_ratio * d_model,
                mixing,
                base,
                local_mixing,
                norm,
                num_layers * num_recursions,
            )
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.num_recursions, self.recursion, self.embedding_rank = num_recursions, recursion, embedding_rank
        if embedding_rank is not None:
            self.embed = FactorisedEmbedding(vocab_size, d_model, embedding_rank)
            if tie_embeddings:
                self.head = FactorisedHead(cast(nn.Parameter, self.embed.weight), self.embed.up)
        if head_rank is not None:
            table, up = torch.empty(vocab_size, head_rank), torch.randn(d_model, head_rank) * d_model**-0.5
            self.head = FactorisedHead(nn.Parameter(table), nn.Parameter(up))
        self.save_hyperparameters(logger=False)

    def depth(self) -> list[Layer]:
        """Each block `num_recursions` times, in place or in turn."""
        blocks = super().depth()
        if self.recursion == "all":
            return blocks * self.num_recursions
        return [block for block in blocks for _ in range(self.num_recursions)]

    def flops_per_token(self, seq_len: int) -> int:
        """Those of blocks and head, and the second factor of the embedding."""
        return super().flops_per_token(seq_len) + 2 * self.d_model * (self.embedding_rank or 0)
