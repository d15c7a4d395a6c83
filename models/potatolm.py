"""PotatoLM: pass the card. Every token reads what earlier tokens wrote on a card, then adds its own mark to it.

Token t writes the mark m_t = W_m x_t through the gate g_t = sigmoid(W_g x_t), and reads the card Σ_{s<t} λ^(t-1-s)
g_s * m_s: the sum of strictly earlier writes, computed by chunks, which decays by a factor λ of each head that is
learned; or the plain sum, λ = 1. Each head's slice of the card, layer-normalised, beside its slice of x_t goes through
the head's own two-layer GELU network, and an output projection that starts at zero adds the answers to the input. As
the card is normalised where it is read, the mean of what was written would be the same as its sum. Each x_t may be
mixed over a few positions before it is read. The streaming state is the card, whatever the length; O(T D (D + F + C)) a
layer, no maximum length. Embeddings may be rotated by their positions, but what is learned of these holds for the
trained lengths only; a card that decays tells order without.

Shapes: B batch, T time, D width, H heads, K = D / H width of a head, F hidden width of a head's network, N chunks, C
positions of a chunk, M = B T.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.growth import GrowableModel
from models.layers import (
    ROPE_BASE,
    Mixer,
    Norm,
    Positions,
    check_choice,
    check_heads,
    check_positive,
    init_input,
    kept,
    layer_norm,
    norm_named,
    rotary,
    rotation_base,
)
from models.local_mixing import LocalMixing, LocalMixingKind
from models.scan import CHUNK_SIZE, accumulation_dtype, cumulative_sum, decayed_sum, split_chunks

Card = Literal["sum", "decay"]


class CardState(NamedTuple):
    """What a layer remembers of one place in the text.

    card: sums of writes (B, D), in float32 at least; with carry_norm those of earlier chunks alone. local: with
    carry_norm the sums of this chunk, else (B, 0). recent: the local mixing's state. place: with carry_norm the
    positions of this chunk so far, int64 (1,), else (0,).
    """

    card: Tensor
    local: Tensor
    recent: Tensor
    place: Tensor


def head_norm(x: Tensor, num_heads: int) -> Tensor:
    """Layer norm of each head's slice of (..., D)."""
    normed: Tensor = layer_norm(x.unflatten(-1, (num_heads, -1))).flatten(-2)
    return normed


def causal_shift(x_BTD: Tensor) -> Tensor:
    """Delay (B, T, D) by one position, zeros first."""
    return F.pad(x_BTD, (0, 0, 1, 0))[:, : x_BTD.size(1)]


def earlier_sum(writes_BTD: Tensor, chunk_size: int) -> Tensor:
    """The card at every position, the sum of strictly earlier writes: (B, T, D) -> (B, T, D)."""
    return cumulative_sum(causal_shift(writes_BTD), chunk_size)


def earlier_decayed_sum(writes_BTD: Tensor, log_decay_H: Tensor, chunk_size: int) -> Tensor:
    """The card that decays, Σ_{s<t} exp(log_decay (t - 1 - s)) writes_s head by head: (B, T, D), (H,) -> (B, T, D)."""
    writes_BTHK = causal_shift(writes_BTD).unflatten(-1, (log_decay_H.numel(), -1))
    return decayed_sum(writes_BTHK, log_decay_H, chunk_size).flatten(2)


def earlier_sum_carry_normed(writes_BTD: Tensor, chunk_size: int, num_heads: int) -> Tensor:
    """The same, but the carry, the sum of all earlier chunks, is layer-normalised a head before the rest is added."""
    writes_BNCD = split_chunks(writes_BTD.to(accumulation_dtype(writes_BTD.dtype)), chunk_size)
    local_BNCD = writes_BNCD.cumsum(2)
    carry_BND = causal_shift(local_BNCD[:, :, -1].cumsum(1))
    card_BNCD = F.pad(local_BNCD[:, :, :-1], (0, 0, 1, 0)) + head_norm(carry_BND, num_heads).unsqueeze(2)
    card_BTD: Tensor = card_BNCD.flatten(1, 2)[:, : writes_BTD.size(1)]
    return card_BTD


def head_networks(card_HMK: Tensor, own_HMK: Tensor, up_HFI: Tensor, down_HKF: Tensor) -> Tensor:
    """A two-layer GELU network for each head, which reads I = 2 K numbers: two (H, M, K) -> (H, M, K)."""
    hidden_HMF = F.gelu(torch.cat((card_HMK, own_HMK), -1) @ up_HFI.mT)
    return hidden_HMF @ down_HKF.mT


class RotaryPositions(Mixer):
    """(B, T, D) -> (B, T, D): the first layer, which rotates embeddings by their positions, as one head of width D.

    Args:
        base: Base of the rotary positions' frequencies.
    """

    start: Tensor

    def __init__(self, base: float = ROPE_BASE) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("start", torch.zeros((), dtype=torch.int64), persistent=False)

    def read(self, x_BTD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) from the position in the state on, and the next position."""
        start, following = (0, None) if state is None else (state, state + x_BTD.size(1))
        return rotary(x_BTD, start, self.base), following

    def init_state(self, batch_size: int) -> Tensor:
        """The next position, int64 without dimensions."""
        return self.start

    def flops_per_token(self, seq_len: int) -> int:
        """No matrix product."""
        return 0

    def state_bytes(self, seq_len: int) -> int:
        """The next position."""
        return self.start.element_size()


class PassTheCard(Mixer):
    """(B, T, D) -> (B, T, D): read the card, think in each head, add the answer; write a mark for later tokens.

    The heads' matrices are stored stacked, `up` (H F, 2 K) and `down` (H K, F), as Muon takes two dimensions only.

    Args:
        d_model: Width.
        num_heads: Heads, each with a network of its own.
        head_hidden: Hidden width of a head's network.
        chunk_size: Positions of a chunk.
        card: The sum of all earlier writes, or one that each head lets decay by a factor of its own, which is learned.
        carry_norm: Layer-normalise the sum of all earlier chunks before the rest is added, so that the chunk size
            matters: it says how far back marks have a card to themselves.
        local_mixing: How marks, gates and the heads' networks see positions just before.
        norm: Norm, without parameters, of the input; cards are layer-normalised always.
    """

    outputs = ("out.weight",)

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_hidden: int,
        chunk_size: int = CHUNK_SIZE,
        card: Card = "sum",
        carry_norm: bool = False,
        local_mixing: LocalMixingKind = "none",
        norm: Norm = "rms",
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        check_choice("--model.card", card, Card)
        if card == "decay" and carry_norm:
            raise ValueError(
                "--model.carry_norm true normalises the sum of all earlier chunks, which --model.card decay lets fade; "
                "choose --model.card sum or leave carry_norm false"
            )
        self.local_mixing = LocalMixing(d_model, local_mixing)
        self.d_model, self.num_heads = d_model, num_heads
        self.chunk_size, self.card, self.carry_norm = chunk_size, card, carry_norm
        self.write = nn.Linear(d_model, 2 * d_model, bias=False)
        self.up = nn.Parameter(torch.empty(num_heads * head_hidden, 2 * (d_model // num_heads)))
        self.down = nn.Parameter(torch.empty(d_model, head_hidden))
        self.out = nn.Linear(d_model, d_model, bias=False)
        if card == "decay":
            self.decay = nn.Parameter(torch.empty(num_heads))  # the factor is its sigmoid
        self.init_weights()

    def init_weights(self) -> None:
        """Weights write, up and down: U(-1/sqrt fan_in, 1/sqrt fan_in); out: zero, so a new layer changes nothing.

        A card decays by 1 - 2^(-8 h / H) in head h of H, from the first: half of it, or more, to 1 / 256 is lost a
        token (the slopes of ALiBi, arXiv 2108.12409).
        """
        for weight in (self.write.weight, self.up, self.down):
            init_input(weight)
        nn.init.zeros_(self.out.weight)
        if self.card == "decay":
            slope_H = 2 ** (-8 * torch.arange(1, self.num_heads + 1, device=self.decay.device) / self.num_heads)
            self.decay.data.copy_(torch.logit(1 - slope_H))

    def writes(self, normed: Tensor) -> Tensor:
        """What each token adds to the card, its mark through its gate: (..., D) -> (..., D)."""
        mark, gate = self.write(normed).chunk(2, -1)
        gated: Tensor = gate.sigmoid() * mark
        return gated

    def log_decay(self) -> Tensor:
        """Logarithms of the heads' factors, (H,)."""
        return F.logsigmoid(self.decay.to(accumulation_dtype(self.decay.dtype)))

    def answers(self, card: Tensor, own: Tensor) -> Tensor:
        """The heads' networks of normalised card and own slice, then the projection: two (..., D) -> (..., D)."""
        split = (-1, self.num_heads, self.d_model // self.num_heads)
        card_HMK, own_HMK = (x.reshape(split).transpose(0, 1) for x in (card, own))
        up, down = (weight.unflatten(0, (self.num_heads, -1)) for weight in (self.up, self.down))
        y_HMK = head_networks(layer_norm(card_HMK).to(own.dtype), own_HMK, up, down)
        projected: Tensor = self.out(y_HMK.transpose(0, 1).reshape(own.shape))
        return projected

    def cards(self, writes_BTD: Tensor) -> Tensor:
        """The card at every position of a text: (B, T, D) -> (B, T, D)."""
        if self.card == "decay":
            return earlier_decayed_sum(writes_BTD, self.log_decay(), self.chunk_size)
        if self.carry_norm:
            return earlier_sum_carry_normed(writes_BTD, self.chunk_size, self.num_heads)
        return earlier_sum(writes_BTD, self.chunk_size)

    def read(self, x_BTD: Tensor, state: CardState | None) -> tuple[Tensor, CardState | None]:
        """(B, T, D) -> (B, T, D) after what the state has seen, and the next state."""
        own, recent = self.local_mixing.read(self.norm(x_BTD), state.recent if state else None)
        writes = self.writes(own)
        if state is None:
            return x_BTD + self.answers(self.cards(writes), own), None
        # What was written before counts as if it had been written at once, and one position more has the next card.
        before = self.written(state)
        writes = F.pad(torch.cat((before, writes.to(before.dtype)), 1), (0, 0, 0, 1))
        cards = self.cards(writes)[:, before.size(1) :]
        y_BTD = x_BTD + self.answers(cards[:, :-1], own)
        if not self.carry_norm:
            return y_BTD, state._replace(card=kept(cards[:, -1]), recent=recent)
        place = (state.place + x_BTD.size(1) - 1) % self.chunk_size + 1
        begin = -1 - int(place)
        return y_BTD, CardState(writes[:, :begin].sum(1), writes[:, begin:].sum(1), recent, place)

    def written(self, state: CardState) -> Tensor:
        """Writes (B, S, D) whose cards are those of the state: one, or with carry_norm chunks up to its place."""
        if not self.carry_norm:
            return state.card.unsqueeze(1)
        chunks = [F.pad(state.card.unsqueeze(1), (0, 0, 0, self.chunk_size - 1))]
        if state.place > 0:
            chunks.append(F.pad(state.local.unsqueeze(1), (0, 0, 0, int(state.place) - 1)))
        return torch.cat(chunks, 1)

    def init_state(self, batch_size: int) -> CardState:
        """An empty card."""
        dtype = accumulation_dtype(self.out.weight.dtype)
        card_BD = self.out.weight.new_zeros(batch_size, self.d_model, dtype=dtype)
        place = torch.zeros(int(self.carry_norm), dtype=torch.int64, device=card_BD.device)
        local_BD = torch.zeros_like(card_BD) if self.carry_norm else card_BD[:, :0]
        return CardState(card_BD, local_BD, self.local_mixing.init_state(batch_size), place)

    def step(self, x_BD: Tensor, state: CardState) -> tuple[Tensor, CardState]:
        """One position (B, D) of `forward`."""
        card_BD, local_BD, recent, place = state
        own, recent = self.local_mixing.step(self.norm(x_BD), recent)
        writes = self.writes(own)
        if not self.carry_norm:
            y_BD = x_BD + self.answers(card_BD, own)
            if self.card == "decay":
                card_BD = card_BD * self.log_decay().exp().repeat_interleave(self.d_model // self.num_heads)
            return y_BD, CardState(card_BD + writes, local_BD, recent, place)
        is_full = place == self.chunk_size  # a tensor, so that a compiled step serves all places
        card_BD = torch.where(is_full, card_BD + local_BD, card_BD)
        local_BD, place = local_BD.masked_fill(is_full, 0), place.masked_fill(is_full, 0)
        y_BD = x_BD + self.answers(head_norm(card_BD, self.num_heads) + local_BD, own)
        return y_BD, CardState(card_BD, local_BD + writes, recent, place + 1)

    def flops_per_token(self, seq_len: int) -> int:
        """Each matrix once, and the local mixing; plain sums are elementwise, those that decay a product a chunk."""
        weights = sum(weight.numel() for weight in self.parameters() if weight.ndim == 2)
        powers = self.d_model * min(self.chunk_size, seq_len) if self.card == "decay" else 0
        return 2 * (weights + powers) + self.local_mixing.flops_per_token()

    def state_bytes(self, seq_len: int) -> int:
        """One card of all heads, or two and the place, and the local mixing's."""
        card = self.d_model * accumulation_dtype(self.out.weight.dtype).itemsize
        place = torch.int64.itemsize
        return (2 * card + place if self.carry_norm else card) + self.local_mixing.state_bytes()


def pass_the_card_reference(layer: PassTheCard, x_BTD: Tensor) -> Tensor:
    """`layer(x_BTD)` one token and one head at a time, with the sums over earlier tokens written out."""

    def standardised(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    decay_H = layer.decay.sigmoid() if layer.card == "decay" else x_BTD.new_ones(layer.num_heads)

    def total(writes: list[Tensor], head: int) -> Tensor:
        ages = range(len(writes) - 1, -1, -1)
        marks = (decay_H[head] ** age * w.chunk(layer.num_heads, -1)[head] for age, w in zip(ages, writes, strict=True))
        return sum(marks, x_BTD.new_zeros(()))

    mark_weight, gate_weight = layer.write.weight.chunk(2)
    networks = list(zip(layer.up.chunk(layer.num_heads), layer.down.chunk(layer.num_heads), strict=True))
    outputs: list[Tensor] = []
    writes: list[Tensor] = []
    for t, x_BD in enumerate(x_BTD.unbind(1)):
        normed = x_BD / x_BD.square().mean(-1, keepdim=True).sqrt()
        begin = t // layer.chunk_size * layer.chunk_size if layer.carry_norm else 0
        answers = []
        for head, (up, down) in enumerate(networks):
            own = normed.chunk(layer.num_heads, -1)[head]
            card = torch.zeros_like(own) + total(writes[begin:], head)
            if layer.carry_norm:
                card = card + standardised(torch.zeros_like(own) + total(writes[:begin], head))
            answers.append(F.gelu(torch.cat((standardised(card), own), -1) @ up.T) @ down.T)
        outputs.append(x_BD + torch.cat(answers, -1) @ layer.out.weight.T)
        writes.append((normed @ gate_weight.T).sigmoid() * (normed @ mark_weight.T))
    return torch.stack(outputs, 1)


class PotatoLM(GrowableModel):
    """Embeddings, rotated by their positions or not, and layers that pass the card; no maximum length.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Layers.
        num_heads: Heads, each with a network of its own.
        ffn_ratio: Hidden width of a head's network, in widths of a head.
        chunk_size: Positions that are summed one after the other; it changes the result with carry_norm only.
        card: What a token reads of all earlier ones: the sum of what they wrote, or one that each head lets decay by a
            factor of its own, which is learned.
        carry_norm: Layer-normalise the sum of all earlier chunks before it is combined with the chunk's own.
        local_mixing: Let each layer see the previous position (shift, two taps) or the last four (conv).
        positions: Rotate embeddings by their positions, or leave order to the local mixing.
        rope_base: Base of the rotary positions' frequencies; a small one tells near positions apart better.
        norm: Norm, without parameters, of what each layer and the head read: rms, the root mean square's, or
            layer, which takes the mean away, too; what is read of a card has layer always.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each layer with torch.compile.
    """

    scales_with_width = ("num_heads",)
    searched: ClassVar = {"carry_norm": (False, True)}
    untold: ClassVar = {"card": "sum"}

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_ratio: int = 8,
        chunk_size: int = CHUNK_SIZE,
        card: Card = "decay",
        carry_norm: bool = False,
        local_mixing: LocalMixingKind = "none",
        positions: Positions = "none",
        rope_base: float = ROPE_BASE,
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(d_model=d_model, num_layers=num_layers, ffn_ratio=ffn_ratio, chunk_size=chunk_size)
        check_heads(d_model, num_heads)
        base, hidden = rotation_base(positions, rope_base, d_model), ffn_ratio * d_model // num_heads
        layers: list[nn.Module] = [] if base is None else [RotaryPositions(base)]
        layers += [
            PassTheCard(d_model, num_heads, hidden, chunk_size, card, carry_norm, local_mixing, norm)
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, layers, tie_embeddings, dropout, compile, norm)
        self.save_hyperparameters(logger=False)
