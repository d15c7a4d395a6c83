"""TrajectoryLM: recall what came next the last time that the recent past was like this; no attention matrix.

The recent sequence of symbols is the address. For a normalised input x (B, T, D), which may be mixed over a few
positions before (with which symbols stand for more than one token):

    trajectory   z_0 = x, z_{i+1}[t] = z_i[t] + λ_i * z_i[t - 2^i]: order and local context, by doublings
    symbols      the signs of a learned projection of x, an integer a head
    candidates   the K latest positions after the same last 1, 2, 3, 4, ... symbols, for each (`coincidence.py`)
    recall       y[t] = Σ_s w[t, s] v[s + 1], w = softmax of select(z)[t, s] + 4 coherence(t, s) and one for nothing

where coherence is the mean product of the tanh of the projections, through which symbols learn: recall that helps
pulls symbols together, recall that harms pushes them apart. In training one random earlier position joins the
candidates, so that symbols which should agree but do not yet can meet. A value v is a head's part of x itself; what it
means is left to the output matrix. A stable radix sort and O(T (D^2 + C D)) products, no loop over time, no maximum
length. The streaming state is a table of fixed size, whose slots keep the latest K positions that met them.

Nearest relatives: n-gram induction heads (Akyürek et al., arXiv 2401.12973) attend after equal n-grams of given tokens,
where symbols here are learned from hidden states; Reformer (arXiv 2001.04451) attends inside buckets of similar keys,
where nothing here is compared but what coincides exactly, and what is read is the successor; PPM and suffix matching
learn nothing; Engram (arXiv 2601.07372) and Lngram (arXiv 2605.24869) address static tables of parameters by n-grams
beside a transformer, where memory here is the context alone and replaces attention.

`docs/log.md` tells what was tried, what it gave, and what was kept.

Shapes: B batch, T time, D width, H heads, E bits, L spans, K positions of a slot, C = L K candidates, V = D / H width
of a head, N = B T H places.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.growth import GrowableModel
from models.layers import Norm, check_heads, check_positive, init_input, init_output, norm_named
from models.local_mixing import LocalMixing, LocalMixingKind
from models.scan import accumulation_dtype, full_precision
from models.trajectory.coincidence import (
    MAX_BITS,
    PRIME,
    Links,
    bit_values,
    coincidences,
    context_addresses,
    last_addresses,
    powers,
    reactivations,
    recall,
    recall_weights,
    symbol_addresses,
)
from models.trajectory.store import Log, MemoryState, Table

MAX_SPAN = 4096  # symbols that a context can name; the streaming state keeps as many
SPANS = (1, 2, 3, 4, 6, 8)
COHERENCE = 4.0  # what a candidate gains by a code like its own; where it is learned, it wanders below zero
BlockState = tuple[MemoryState, Tensor]
MAX_DOUBLINGS = 12  # as the streaming state keeps two to this power inputs


def trajectory(x_BTD: Tensor, lags: Iterable[Tensor]) -> Tensor:
    """z_{i+1}[t] = z_i[t] + lag_i * z_i[t - 2^i], zeros before the start: (B, T, D) -> (B, T, D)."""
    for i, lag_D in enumerate(lags):
        delay = min(2**i, x_BTD.size(1))
        moved = torch.addcmul(x_BTD[:, delay:], lag_D, x_BTD[:, : x_BTD.size(1) - delay])
        x_BTD = torch.cat((x_BTD[:, :delay], moved), 1)
    return x_BTD


def trajectory_taps(lags: Iterable[Tensor], one_1D: Tensor) -> Tensor:
    """How much of each of the last 2^n inputs the trajectory takes, the latest last: n lags (D,) -> (2^n, D)."""
    taps_RD = one_1D
    for lag_D in lags:
        taps_RD = torch.cat((lag_D * taps_RD, taps_RD))
    return taps_RD


class TrajectoryMemory(nn.Module):
    """Normalised (B, T, D) -> what is to be added to it (B, T, D): the trajectory without its input, and the recall.

    Args:
        d_model: Width.
        num_heads: Heads, each with symbols of its own.
        bits: Bits of a symbol.
        spans: Numbers of symbols that a context consists of.
        num_matches: Latest positions that a slot keeps.
        num_slots: Slots of a head and span; null for as many as there are addresses.
        num_doublings: The trajectory spans two to this power positions.
    """

    bit: Tensor
    power: Tensor
    last: Tensor

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        bits: int = 16,
        spans: tuple[int, ...] = SPANS,
        num_matches: int = 2,
        num_slots: int | None = 8192,
        num_doublings: int = 4,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_matches=num_matches)
        check_heads(d_model, num_heads)
        check_memory(bits, spans, num_slots, num_doublings)
        self.d_model, self.num_heads, self.bits, self.spans = d_model, num_heads, bits, tuple(spans)
        self.num_matches, self.num_slots = num_matches, num_slots
        self.lags = nn.ParameterList(nn.Parameter(torch.empty(d_model)) for _ in range(num_doublings))
        self.symbol = nn.Linear(d_model, num_heads * bits, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.select = nn.Linear(d_model, num_heads * (1 + len(spans) * num_matches))
        self.reactivation = nn.Parameter(torch.empty(num_heads, 1))
        self.register_buffer("bit", bit_values(bits), persistent=False)
        self.register_buffer("power", powers(max(spans)).unsqueeze(1), persistent=False)
        self.register_buffer("last", torch.tensor(spans) - 1, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw lags from N(0, 1/4), symbol from U(-1/sqrt D, 1/sqrt D), out from N(0, 1 / (4 D)).

        Select prefers longer contexts to shorter ones and later positions to earlier ones, alike everywhere: its bias
        is 2 log2 span - k / 2 for the k-th latest, its matrix zero. Reactivation -2.
        """
        for lag in self.lags:
            nn.init.normal_(lag, std=0.5)
        init_input(self.symbol.weight)
        init_output(self.out.weight, 1)
        nn.init.zeros_(self.select.weight)
        span_L1 = torch.tensor(self.spans, dtype=torch.float32)[:, None]
        prefer_C = (2 * span_L1.log2() - 0.5 * torch.arange(self.num_matches)).flatten()
        with torch.no_grad():
            self.select.bias.copy_(F.pad(prefer_C, (1, 0)).repeat(self.num_heads))
        nn.init.constant_(self.reactivation, -2.0)

    def codes(self, x: Tensor) -> Tensor:
        """What the symbols are the signs of, (..., D) -> (..., H, E), in float32 at least.

        It is not left to autocast: a sign must not depend on how much is computed at once.
        """
        dtype = accumulation_dtype(x.dtype)
        with full_precision(x):
            return F.linear(x.to(dtype), self.symbol.weight.to(dtype)).view(*x.shape[:-1], self.num_heads, -1)

    def scores(self, z_ND: Tensor) -> Tensor:
        """Of nothing and of each candidate, by the direction of the trajectory: (N, D) -> (N, H (1 + C)).

        Select reads a vector of length 1: were it longer, steps of Muon would make the scores wander. In float32 at
        least, as `step` takes differences of them.
        """
        weight, bias = self.selection()
        with full_precision(z_ND):
            return F.linear(F.normalize(z_ND.to(weight.dtype), dim=-1), weight, bias)

    def selection(self) -> tuple[Tensor, Tensor]:
        """Select's matrix (H (1 + C), D) and bias (H (1 + C),), in float32 at least."""
        dtype = accumulation_dtype(self.select.weight.dtype)
        return self.select.weight.to(dtype), self.select.bias.to(dtype)

    def preference(self) -> tuple[Tensor, Tensor]:
        """Select's matrix (D, H C) and bias (H C,) for the scores over that of nothing."""
        weight, bias = (part.unflatten(0, (self.num_heads, -1)) for part in self.selection())
        return (weight[:, 1:] - weight[:, :1]).flatten(0, 1).mT.contiguous(), (bias[:, 1:] - bias[:, :1]).flatten()

    def links(self, code_BTHE: Tensor, score_NC: Tensor) -> tuple[Links, Tensor]:
        """All candidates and their scores, in training with the random position, (N, 1 + C) or (N, 2 + C)."""
        B, T, H, _ = code_BTHE.shape
        address_BTHL = context_addresses(symbol_addresses(code_BTHE, self.bit), self.spans)
        found = coincidences(address_BTHL, self.num_slots, self.num_matches)
        if not self.training:
            return found, score_NC
        delay_BH = torch.randint(1, max(T, 2), (B, H), device=code_BTHE.device)
        score_NC = torch.cat((score_NC, self.reactivation.to(score_NC.dtype).repeat(B * T, 1)), 1)
        return Links(*(torch.cat(pair, 1) for pair in zip(found, reactivations(delay_BH, T), strict=True))), score_NC

    @torch.compiler.disable  # type: ignore[untyped-decorator] # sorting and bags are kernels of their own
    def recall(self, x_BTD: Tensor, code_BTHE: Tensor, score: Tensor) -> Tensor:
        """Values, codes and scores -> what is recalled (B, T, D)."""
        with full_precision(x_BTD):
            code_NE = code_BTHE.tanh().flatten(0, 2)
            score_NC, value_NV = (x.to(code_NE.dtype).reshape(len(code_NE), -1) for x in (score, x_BTD))
            links, score_NC = self.links(code_BTHE.detach(), score_NC)
            y_NV = recall(score_NC, code_NE, value_NV, links, self.num_heads, COHERENCE)
        return y_NV.view_as(x_BTD).to(x_BTD.dtype)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalised (B, T, D) -> (B, T, D)."""
        z_BTD = trajectory(x_BTD, self.lags)
        y_BTD = self.recall(x_BTD, self.codes(x_BTD), self.scores(z_BTD.flatten(0, 1)))
        return cast(Tensor, self.out(y_BTD)) + (z_BTD - x_BTD)

    def init_state(self, batch_size: int) -> MemoryState:
        """Nothing has been read."""
        weight, shape = self.out.weight, (batch_size, self.num_heads, len(self.spans))
        like = weight.new_empty(0, dtype=accumulation_dtype(weight.dtype))
        width = self.bits + self.d_model // self.num_heads
        store: Table | Log = Log.empty(shape, self.num_matches, width, like)
        if self.num_slots is not None:
            store = Table.empty(shape, self.num_slots, self.num_matches, width, like)
        return MemoryState(
            weight.new_zeros(batch_size, 2 ** len(self.lags) - 1, self.d_model),
            trajectory_taps(self.lags, weight.new_ones(1, self.d_model)),
            self.preference(),
            torch.zeros(batch_size, max(self.spans), self.num_heads, dtype=torch.int64, device=weight.device),
            like.new_zeros(batch_size, self.num_heads, self.bits),
            store,
        )

    def step(self, x_BD: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """One position (B, D) of `forward`: complete the previous context by its successor, then look up the own."""
        B, H, E = len(x_BD), self.num_heads, self.bits
        inputs_BRD = torch.cat((state.inputs, x_BD.unsqueeze(1)), 1)
        z_BD, code_BHE = (inputs_BRD * state.taps).sum(1), self.codes(x_BD)
        symbols_BSH = torch.cat((symbol_addresses(code_BHE, self.bit).unsqueeze(1), state.symbols[:, :-1]), 1)
        store = state.store.write(torch.cat((state.code, x_BD.view(B, H, -1)), -1))
        entry_GCW, exists_GC, store = store.read(last_addresses(symbols_BSH, self.power, self.last).mT)  # G = B H
        code_BHE, (weight, bias) = code_BHE.tanh(), state.preference
        with full_precision(x_BD):
            excess_GC1 = torch.addmm(bias, F.normalize(z_BD.to(weight.dtype), dim=-1), weight).view(B * H, -1, 1)
            agreement = (entry_GCW[..., :E], code_BHE.view(B * H, E, 1))
            weight_GC = recall_weights(torch.baddbmm(excess_GC1, *agreement, alpha=COHERENCE / E).squeeze(2), exists_GC)
            y_BD = torch.bmm(weight_GC.unsqueeze(1), entry_GCW[..., E:]).view(B, -1)
        next_state = MemoryState(inputs_BRD[:, 1:], state.taps, state.preference, symbols_BSH, code_BHE, store)
        return self.out(y_BD.to(x_BD.dtype)) + (z_BD - x_BD), next_state

    def flops_per_token(self) -> int:
        """Three matrices; for each candidate, the agreement and the weighted sum."""
        weights: int = sum(linear.weight.numel() for linear in (self.symbol, self.out, self.select))
        candidates = len(self.spans) * self.num_matches
        return 2 * weights + 2 * candidates * (self.num_heads * self.bits + self.d_model)

    def state_bytes(self, seq_len: int) -> int:
        """The table, whatever the length, or the log; the last inputs, symbols and context; select's differences."""
        H, L, item = self.num_heads, len(self.spans), self.out.weight.element_size()
        wide = accumulation_dtype(self.out.weight.dtype).itemsize
        recent: int = item * (2 ** (len(self.lags) + 1) - 1) * self.d_model
        recent += wide * H * L * self.num_matches * (self.d_model + 1)
        recent += H * (8 * max(self.spans) + wide * self.bits)
        entry: int = wide * (self.bits + self.d_model // H)
        if self.num_slots is None:
            return recent + H * (Log.capacity(seq_len, self.num_matches) * (entry + 4 * L) + 4 * L)
        # Each span has its slots, the one looked up last, where it lies, where the slots begin, and its address.
        return recent + H * L * ((self.num_slots + 1) * self.num_matches * (entry + 4) + 8 + 8 + 4)


def check_memory(bits: int, spans: tuple[int, ...], num_slots: int | None, num_doublings: int) -> None:
    """Raise ValueError naming the first option of a memory that will not do."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"--model.bits is {bits}; a symbol has 1 to {MAX_BITS} bits, as addresses are integers of 31")
    if not spans or min(spans) < 1 or max(spans) > MAX_SPAN or len(set(spans)) < len(spans):
        raise ValueError(f"--model.spans is {list(spans)}; it needs different numbers of symbols from 1 to {MAX_SPAN}")
    if num_slots is not None and not 1 <= num_slots <= PRIME:
        raise ValueError(f"--model.num_slots is {num_slots}; it must be 1 to {PRIME}, or null for no limit")
    if not 0 <= num_doublings <= MAX_DOUBLINGS:
        raise ValueError(f"--model.num_doublings is {num_doublings}; it must be 0 to {MAX_DOUBLINGS}")


class Block(nn.Module):
    """(B, T, D) -> (B, T, D): trajectory memory and a feed-forward network, each added to its input.

    `local_mixing` is how the memory sees positions just before, `ffn_width` is the network's hidden width, `norm` that
    of what each part reads, `num_layers` counts the model's blocks, whose outputs add up.
    """

    def __init__(
        self, memory: TrajectoryMemory, local_mixing: LocalMixingKind, ffn_width: int, norm: Norm, num_layers: int
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        self.num_layers, self.memory = num_layers, memory
        self.local_mixing = LocalMixing(memory.d_model, local_mixing)
        self.up = nn.Linear(memory.d_model, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, memory.d_model, bias=False)
        self.init_weights()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The parameters that it adds nothing without: without lags the trajectory is its input."""
        return (
            *(f"memory.lags.{number}" for number in range(len(self.memory.lags))),
            "memory.out.weight",
            "down.weight",
        )

    def init_weights(self) -> None:
        """Up U(-1/sqrt D, 1/sqrt D); down, small at first, N(0, 1 / (4 fan_in num_layers))."""
        init_input(self.up.weight)
        init_output(self.down.weight, self.num_layers)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Squared-ReLU network of the normalised (..., D), added to it."""
        return x + cast(Tensor, self.down(F.relu(self.up(self.norm(x))).square()))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.feed_forward(x_BTD + self.memory(self.local_mixing(self.norm(x_BTD))))

    def init_state(self, batch_size: int) -> BlockState:
        """The memory's, and the local mixing's."""
        return self.memory.init_state(batch_size), self.local_mixing.init_state(batch_size)

    def step(self, x_BD: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One position (B, D) of `forward`."""
        memory, recent = state
        seen_BD, recent = self.local_mixing.step(self.norm(x_BD), recent)
        y_BD, memory = self.memory.step(seen_BD, memory)
        return self.feed_forward(x_BD + y_BD), (memory, recent)

    def prefill(self, x_BTD: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Several positions (B, T, D) of `forward`, one after the other."""
        outputs = []
        for x_BD in x_BTD.unbind(1):
            y_BD, state = self.step(x_BD, state)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state

    def flops_per_token(self, seq_len: int) -> int:
        """The memory's and the local mixing's, whatever the length, and two matrices."""
        mixer = self.memory.flops_per_token() + self.local_mixing.flops_per_token()
        return mixer + 2 * (self.up.weight.numel() + self.down.weight.numel())

    def state_bytes(self, seq_len: int) -> int:
        """The memory's, and the local mixing's."""
        return self.memory.state_bytes(seq_len) + self.local_mixing.state_bytes()


class TrajectoryLM(GrowableModel):
    """Recall of what followed the last time the recent past was like this; sub-quadratic, no maximum length.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks.
        num_heads: Heads of the memory, each with symbols of its own.
        bits: Bits of a symbol: 2^bits things that a head can tell apart.
        spans: Numbers of symbols that a context consists of, each with a table of its own.
        num_matches: Latest positions that a slot of a table keeps.
        num_slots: Slots of a head and span, which bound the memory; null for as many as there are addresses.
        num_doublings: The trajectory spans two to this power positions.
        local_mixing: Let the memory see the previous position (shift, two taps) or the last four (conv).
        ffn_ratio: Hidden width of the feed-forward network, in widths.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile, but for the look-up.
    """

    scales_with_width = ("num_heads",)

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        bits: int = 16,
        spans: tuple[int, ...] = SPANS,
        num_matches: int = 2,
        num_slots: int | None = 8192,
        num_doublings: int = 4,
        local_mixing: LocalMixingKind = "none",
        ffn_ratio: int = 4,
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(ffn_ratio=ffn_ratio)
        blocks: list[nn.Module] = [
            Block(
                TrajectoryMemory(d_model, num_heads, bits, spans, num_matches, num_slots, num_doublings),
                local_mixing,
                ffn_ratio * d_model,
                norm,
                num_layers,
            )
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.save_hyperparameters(logger=False)
