"""TrajectoryLM: recall what came next the last times that the recent past was like this; no attention matrix.

    links        the K latest positions after the same last 1, 2, 3, 4, ... tokens, for each (`links.py`)
    trajectory   z_0 = x, z_{i+1}[t] = z_i[t] + λ_i * z_i[t - 2^i]: order and local context, by doublings
    recall       y[t] = Σ_s w[t, s] x[s + 1], w = softmax of select(z)[t, s] over the links s, the sequence's
                 first positions, and nothing
    tape         an option: what stands at a learned number of learned steps, for what has to be counted (`tape.py`)

for a normalised input x (B, T, D) of a layer, which may be mixed over a few positions before. An output matrix says
what the recalled features mean. The links are found once, from the tokens, and all layers read along them. In the first
layer that is induction over n-grams in one operator: it recalls the token that came next, and what the tokens before it
were. In deeper layers it recalls what the model had made of that position by then: sparse attention, whose edges are
matching contexts. A stable radix sort and O(T (D^2 + C D)) products, no loop over time, no maximum length. The
streaming state is of fixed size: a table of slots for all layers, and for each the values of the last M positions.

Nearest relatives: n-gram induction heads (Akyürek et al., arXiv 2401.12973) attend after equal n-grams in two heads of
a transformer, where here all matches of several lengths are weighed in one place, in linear time, and replace
attention; Reformer (arXiv 2001.04451) attends inside buckets of similar keys, where nothing here is compared but what
coincides exactly, and what is read is the successor; PPM and suffix matching learn nothing; Engram (arXiv 2601.07372)
and Lngram (arXiv 2605.24869) address static tables of parameters by n-grams beside a transformer, where memory here is
the context alone. Continuous integrate-and-fire (arXiv 1905.11235) sums lengths as the tape does, to cut sequences.

`docs/log.md` tells what was tried, what it gave, and what was kept.

Shapes: B batch, T time, D width, L spans, K positions of a slot, C = L K candidates, N = B T places, M positions that
are remembered, A of the opening.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bags import gathered_sum
from models.growth import GrowableModel
from models.layers import Norm, check_positive, init_input, init_output, kept, norm_named, relu_squared
from models.local_mixing import LocalMixing, LocalMixingKind, delayed_sum
from models.scan import accumulation_dtype, full_precision
from models.trajectory.index import EXTRA_ROWS, ContextIndex, Rows, new_ring, remember, remember_one, written
from models.trajectory.links import MAX_NUMBERS, OPENING, SPANS, Candidates, Links
from models.trajectory.recall import recall, recall_weights
from models.trajectory.tape import Tape, TapeState

MAX_DOUBLINGS = 12  # as the streaming state keeps two to this power inputs


def trajectory(x_BTD: Tensor, lags: Iterable[Tensor]) -> Tensor:
    """z_{i+1}[t] = z_i[t] + lag_i * z_i[t - 2^i], zeros before the start: (B, T, D) -> (B, T, D)."""
    for i, lag_D in enumerate(lags):
        x_BTD = delayed_sum(x_BTD, lag_D.to(x_BTD.dtype).unsqueeze(0), (2**i,))
    return x_BTD


def trajectory_taps(lags: Iterable[Tensor], one_1D: Tensor) -> Tensor:
    """How much of each of the last 2^n inputs the trajectory takes, the latest last: n lags (D,) -> (2^n, D)."""
    taps_RD = one_1D
    for lag_D in lags:
        taps_RD = torch.cat((lag_D * taps_RD, taps_RD))
    return taps_RD


class MemoryState(NamedTuple):
    """What a memory keeps of the past.

    The last inputs (B, R, D), how much of each the trajectory takes (R, D), the ring of values (B, M + A + 2, D), and
    the tape, if there is one.
    """

    inputs: Tensor
    taps: Tensor
    ring: Tensor
    tape: TapeState | None


class TrajectoryMemory(nn.Module):
    """Normalised (B, T, D) -> what is to be added to it (B, T, D): the trajectory without its input, and the recall.

    Args:
        d_model: Width.
        candidates: Those that the links lead to which it is given.
        num_doublings: The trajectory spans two to this power positions.
        tape: Recall what a pointer reads from a tape, too (`tape.py`).
    """

    def __init__(self, d_model: int, candidates: Candidates, num_doublings: int = 4, tape: bool = False) -> None:
        super().__init__()
        check_positive(d_model=d_model)
        if not 0 <= num_doublings <= MAX_DOUBLINGS:
            raise ValueError(f"--model.num_doublings is {num_doublings}; it must be 0 to {MAX_DOUBLINGS}")
        self.d_model, self.candidates = d_model, candidates
        self.lags = nn.ParameterList(nn.Parameter(torch.empty(d_model)) for _ in range(num_doublings))
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.tape = Tape(d_model, candidates.memory_len) if tape else None
        self.select = nn.Linear(d_model, 1 + OPENING + candidates.number)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw lags from N(0, 1/4), out from N(0, 1 / (4 D)).

        Select prefers longer contexts to shorter ones and later positions to earlier ones, alike everywhere: its bias
        is 2 log2 span - k / 2 for the k-th latest, -2 for the sequence's opening; its matrix is zero.
        """
        for lag in self.lags:
            nn.init.normal_(lag, std=0.5)
        init_output(self.out.weight, 1)
        nn.init.zeros_(self.select.weight)
        span_L1 = torch.tensor(self.candidates.spans, dtype=torch.float32)[:, None]
        prefer_C = (2 * span_L1.log2() - 0.5 * torch.arange(self.candidates.num_matches)).flatten()
        with torch.no_grad():
            self.select.bias.copy_(torch.cat((torch.tensor([0.0] + OPENING * [-2.0]), prefer_C)))

    def scores(self, z_ND: Tensor) -> Tensor:
        """Of nothing, the opening and each candidate, by the direction of the trajectory: (N, D) -> (N, 1 + A + C).

        Select reads a vector of length 1: were it longer, steps of Muon would make the scores wander. In float32 at
        least, as the values that are recalled; to be called where autocast leaves types as they are.
        """
        select, dtype = self.select, accumulation_dtype(z_ND.dtype)
        z_ND = z_ND.to(dtype)  # F.normalize, in fewer operations
        direction_ND = z_ND / torch.linalg.vector_norm(z_ND, dim=-1, keepdim=True).clamp_min(1e-12)
        return F.linear(direction_ND, select.weight.to(dtype), select.bias.to(dtype))

    @torch.compiler.disable  # type: ignore[untyped-decorator] # bags are kernels of their own
    def recall(self, x_BTD: Tensor, score_NC: Tensor, links: Links) -> Tensor:
        """What is recalled (B, T, D)."""
        with full_precision(x_BTD):
            return recall(score_NC, x_BTD.to(score_NC.dtype).contiguous(), links).to(x_BTD.dtype)

    def forward(self, x_BTD: Tensor, links: Links) -> Tensor:
        """Normalised (B, T, D), and the links -> (B, T, D)."""
        z_BTD = trajectory(x_BTD, self.lags)
        with full_precision(x_BTD):
            score_NC = self.scores(z_BTD.flatten(0, 1))
        y_BTD = self.recall(x_BTD, score_NC, links)
        if self.tape is not None:
            y_BTD = y_BTD + self.tape(x_BTD)
        return cast(Tensor, self.out(y_BTD)) + (z_BTD - x_BTD)

    def init_state(self, batch_size: int) -> MemoryState:
        """Nothing has been read."""
        weight = self.out.weight
        return MemoryState(
            weight.new_zeros(batch_size, 2 ** len(self.lags) - 1, self.d_model),
            trajectory_taps(self.lags, weight.new_ones(1, self.d_model)),
            new_ring(batch_size, self.candidates.memory_len, weight, self.d_model),
            None if self.tape is None else self.tape.init_state(batch_size),
        )

    def step(self, x_BD: Tensor, state: MemoryState, rows: Rows) -> tuple[Tensor, MemoryState]:
        """One position (B, D) of `forward`, and where its values are."""
        inputs_BRD = torch.cat((state.inputs, x_BD.unsqueeze(1)), 1)
        z_BD = (inputs_BRD * state.taps).sum(1)
        remember_one(state.ring, x_BD, rows.start)
        y_BD, tape = self.recalled(state.ring, z_BD, rows).to(x_BD.dtype), state.tape
        if self.tape is not None and tape is not None:
            read_BD, tape = self.tape.step(x_BD, tape, rows.start)
            y_BD = y_BD + read_BD
        recent_BRD = inputs_BRD.narrow(1, 1, inputs_BRD.size(1) - 1)
        return self.out(y_BD) + (z_BD - x_BD), MemoryState(recent_BRD, state.taps, state.ring, tape)

    def prefill(self, x_BTD: Tensor, state: MemoryState, rows: Rows) -> tuple[Tensor, MemoryState]:
        """`step` for many positions (B, T, D) at once."""
        inputs_BTD = torch.cat((state.inputs, x_BTD), 1)
        z_BTD = trajectory(inputs_BTD, self.lags)[:, -x_BTD.size(1) :]
        value_BTD = x_BTD.to(state.ring.dtype)
        table = torch.cat((written(state.ring, rows.start), value_BTD), 1)
        y_BTD, tape = self.recalled(table, z_BTD.flatten(0, 1), rows).view_as(x_BTD).to(x_BTD.dtype), state.tape
        if self.tape is not None and tape is not None:
            read_BTD, tape = self.tape.prefill(x_BTD, tape, int(rows.start))
            y_BTD = y_BTD + read_BTD
        remember(state.ring, value_BTD, int(rows.start))
        inputs_BRD = kept(inputs_BTD[:, -1 - state.inputs.size(1) :])[:, 1:]  # as `step` leaves them in memory
        return self.out(y_BTD) + (z_BTD - x_BTD), state._replace(inputs=inputs_BRD, tape=tape)

    def recalled(self, table: Tensor, z_ND: Tensor, rows: Rows) -> Tensor:
        """What is recalled from the rows of a table: (..., D), trajectory (N, D) -> (N, D)."""
        with full_precision(table):
            weight_NC = recall_weights(self.scores(z_ND), rows.missing)
            return gathered_sum(weight_NC, table.flatten(0, 1), rows.source, rows.offsets)

    def flops_per_token(self) -> int:
        """Two matrices, the weighted sum of candidates, and the tape."""
        weights = self.out.weight.numel() + self.select.weight.numel()
        tape = 0 if self.tape is None else self.tape.flops_per_token()
        return 2 * weights + 2 * (OPENING + self.candidates.number) * self.d_model + tape

    def state_bytes(self) -> int:
        """The ring and the tape, whatever the length; the last inputs and their taps."""
        recent: int = self.out.weight.element_size() * (2 ** (len(self.lags) + 1) - 1) * self.d_model
        wide = accumulation_dtype(self.out.weight.dtype).itemsize
        tape = 0 if self.tape is None else self.tape.state_bytes()
        return recent + wide * (self.candidates.memory_len + EXTRA_ROWS) * self.d_model + tape


BlockState = tuple[MemoryState, Tensor]


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
        return x + cast(Tensor, self.down(relu_squared(self.up(self.norm(x)))))

    def forward(self, x_BTD: Tensor, links: Links) -> Tensor:
        """(B, T, D), and the links -> (B, T, D)."""
        return self.feed_forward(x_BTD + self.memory(self.local_mixing(self.norm(x_BTD)), links))

    def init_state(self, batch_size: int) -> BlockState:
        """The memory's, and the local mixing's."""
        return self.memory.init_state(batch_size), self.local_mixing.init_state(batch_size)

    def step(self, x_BD: Tensor, state: BlockState, rows: Rows) -> tuple[Tensor, BlockState]:
        """One position (B, D) of `forward`, and where its values are."""
        memory, recent = state
        seen_BD, recent = self.local_mixing.step(self.norm(x_BD), recent)
        y_BD, memory = self.memory.step(seen_BD, memory, rows)
        return self.feed_forward(x_BD + y_BD), (memory, recent)

    def prefill(self, x_BTD: Tensor, state: BlockState, rows: Rows) -> tuple[Tensor, BlockState]:
        """`step` for many positions (B, T, D) at once."""
        memory, recent = state
        seen_BTD, recent = self.local_mixing.prefill(self.norm(x_BTD), recent)
        y_BTD, memory = self.memory.prefill(seen_BTD, memory, rows)
        return self.feed_forward(x_BTD + y_BTD), (memory, recent)

    def flops_per_token(self, seq_len: int) -> int:
        """The memory's and the local mixing's, whatever the length, and two matrices."""
        mixer = self.memory.flops_per_token() + self.local_mixing.flops_per_token()
        return mixer + 2 * (self.up.weight.numel() + self.down.weight.numel())

    def state_bytes(self, seq_len: int) -> int:
        """The memory's, and the local mixing's."""
        return self.memory.state_bytes() + self.local_mixing.state_bytes()


class TrajectoryLM(GrowableModel):
    """Recall of what followed the last times the recent past was like this; sub-quadratic, no maximum length.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks, which read along the same links.
        spans: Numbers of tokens that a context consists of, each with a table of its own.
        num_matches: Latest positions after the same context that are linked.
        memory_len: Positions back to which there are links; they bound the streaming state.
        num_doublings: The trajectory spans two to this power positions.
        tape: Let it count, too: tokens write learned lengths of a tape, which a pointer reads.
        local_mixing: Let the memory see the previous position (shift, two taps) or the last four (conv).
        ffn_ratio: Hidden width of the feed-forward network, in widths.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile, but for the look-up.
    """

    scales_with_width = ()

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        spans: tuple[int, ...] = SPANS,
        num_matches: int = 4,
        memory_len: int = 8192,
        num_doublings: int = 4,
        tape: bool = False,
        local_mixing: LocalMixingKind = "none",
        ffn_ratio: int = 4,
        norm: Norm = "rms",
        tie_embeddings: bool = True,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(ffn_ratio=ffn_ratio)
        candidates = Candidates(tuple(spans), num_matches, memory_len)
        if max(spans) * vocab_size > MAX_NUMBERS:
            raise ValueError(
                f"--model.spans has {max(spans):,} tokens, too many with a vocabulary of {vocab_size:,}; choose "
                f"{MAX_NUMBERS // vocab_size:,} at most"
            )
        blocks: list[nn.Module] = [
            Block(
                TrajectoryMemory(d_model, candidates, num_doublings, tape),
                local_mixing,
                ffn_ratio * d_model,
                norm,
                num_layers,
            )
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.index = ContextIndex(candidates)
        self.save_hyperparameters(logger=False)

    def features(self, tokens_BT: Tensor, *shared: Any) -> Tensor:
        """Tokens (B, T) -> normalised features (B, T, D) that the head reads; the links are found on the way."""
        return super().features(tokens_BT, self.index(tokens_BT), *shared)

    def init_state(self, batch_size: int) -> list[Any]:
        """The index, and the state of each layer."""
        return [self.index.init_state(batch_size), *super().init_state(batch_size)]

    def step(self, token_B: Tensor, state: list[Any], *shared: Any) -> tuple[Tensor, list[Any]]:
        """One token (B,) and the state -> logits (B, V) and the next state; equal to `forward` at that position."""
        rows, index = self.index.step(token_B, state[0])
        logits_BV, layers = super().step(token_B, state[1:], rows, *shared)
        return logits_BV, [index, *layers]

    def prefill(self, tokens_BT: Tensor, state: list[Any], *shared: Any) -> tuple[Tensor, list[Any]]:
        """`step` for many tokens (B, T) at once: the last one's logits (B, V), and the next state."""
        rows, index = self.index.prefill(tokens_BT, state[0])
        logits_BV, layers = super().prefill(tokens_BT, state[1:], rows, *shared)
        return logits_BV, [index, *layers]

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one sequence's streaming state, whatever its length: the index, and what each layer keeps."""
        return self.index.state_bytes() + super().state_bytes(seq_len)
