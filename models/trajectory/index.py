"""Which positions met a context before: for all of a sequence at once, or token by token with a bounded state.

All layers read along the same links, so they are found once, from the tokens. The streaming state is a table of slots
that keep the latest positions, and each layer keeps a ring of the values that it read at these: the last M positions,
and the sequence's first ones.

Shapes: B batch, T time, L spans of contexts, K positions of a slot, C = L K candidates of a place, M positions that are
remembered, and slots of a span, P the longest span, N = B T places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bags import bag_offsets
from models.layers import kept
from models.scan import accumulation_dtype
from models.trajectory.links import (
    OPENING,
    PRIME,
    RADIX,
    Candidates,
    Links,
    Sorted,
    coincidences,
    context_addresses,
    neighbours,
    opening,
    slots,
    sort_by_slot,
)

KEY = 2**31  # times an address, plus a position's number, is a slot's entry: tells both in one number
NO_TOKEN = -1  # before the start; numbers of tokens count from 1, and 0 adds nothing to an address
EMPTY = 2**62  # an entry that is none: of an address that there is not
EXTRA_ROWS = OPENING + 2  # of a ring, behind those of the latest positions: the opening, zeros, and one never read


class Index(NamedTuple):
    """The streaming state.

    recent: the last P tokens, NO_TOKEN before the start, (B, 1, P); slots: of each position that a slot keeps its
    context's address times KEY, plus its successor's number, (B L M, K), EMPTY for none; length: tokens read, a tensor
    (1,) where the step is compiled. And what stays: where the slots of a sequence and span begin, (B, L); the rows of
    nothing and of the opening, (B, 1 + A); the first row of a sequence, (B, 1); where the rows of each begin in a list
    of them all, (B,).
    """

    recent: Tensor
    slots: Tensor
    length: int | Tensor
    first_slot: Tensor
    front: Tensor
    first_row: Tensor
    offsets: Tensor

    def fixed(self, length: int) -> Index:
        """The state whose length is a tensor, so that a compiled step serves all positions."""
        return self._replace(length=self.offsets.new_tensor([int(self.length)]))


class Rows(NamedTuple):
    """Where a layer finds the values of what came next after the candidates.

    source: rows of nothing (zeros), the opening and the candidates, int64 (N (1 + A + C),); missing: which of these
    there are not, (N, 1 + A + C); offsets: where each place's rows begin, (N,).
    After `step` they are rows of the ring, after `prefill` of each sequence's ring and then its positions at hand.
    start: number of the first position at hand.
    """

    source: Tensor
    missing: Tensor
    offsets: Tensor
    start: int | Tensor


def new_ring(batch_size: int, memory_len: int, like: Tensor, width: int) -> Tensor:
    """A ring without values, (B, M + A + 2, D).

    A position's row is its number modulo M: before it is written it holds anything, and nothing reads it. Then come the
    opening, positions 1, ..., A or the latest one before them, zeros, and what is written where nothing is to be kept.
    """
    ring = like.new_empty(batch_size, memory_len + EXTRA_ROWS, width, dtype=accumulation_dtype(like.dtype))
    ring[:, memory_len:] = 0
    return ring


def written(ring_BMD: Tensor, start: int | Tensor) -> Tensor:
    """The rows of a ring that something may be recalled from: before the first position the last ones alone."""
    return ring_BMD if start else ring_BMD[:, -EXTRA_ROWS:]


def remember(ring_BMD: Tensor, x_BTD: Tensor, start: int) -> None:
    """Write the values of positions from `start` on into their rows of a ring."""
    M, T = ring_BMD.size(1) - EXTRA_ROWS, x_BTD.size(1)
    last_BTD, row = x_BTD[:, -M:], (start + max(T - M, 0)) % M
    num_wrapped = max(row + last_BTD.size(1) - M, 0)
    ring_BMD[:, row : row + last_BTD.size(1) - num_wrapped] = last_BTD[:, : M - row]
    if num_wrapped:
        ring_BMD[:, :num_wrapped] = last_BTD[:, -num_wrapped:]
    if start <= OPENING:
        remember_opening(ring_BMD, x_BTD, start)


def remember_one(ring_BMD: Tensor, x_BD: Tensor, now: int | Tensor) -> None:
    """`remember` for one position, which may be a tensor (1,)."""
    M = ring_BMD.size(1) - EXTRA_ROWS
    if isinstance(now, int):
        ring_BMD.select(1, now % M).copy_(x_BD)
        if now > OPENING:
            return
    else:
        ring_BMD[:, now % M] = x_BD.unsqueeze(1)
    remember_opening(ring_BMD, x_BD.unsqueeze(1), now)


def remember_opening(ring_BMD: Tensor, x_BTD: Tensor, start: int | Tensor) -> None:
    """Write the rows of the opening; while it is not over, the latest position stands in for those that are to come."""
    M, T = ring_BMD.size(1) - EXTRA_ROWS, x_BTD.size(1)
    number_A = torch.arange(1, OPENING + 1, device=x_BTD.device)
    row_A = M + torch.where(number_A < start, OPENING + 1, number_A - 1)
    ring_BMD[:, row_A] = x_BTD[:, (number_A - start).clamp(0, T - 1)]


class ContextIndex(nn.Module):
    """Tokens (B, T) -> the links that all layers read along, to these candidates."""

    power: Tensor

    def __init__(self, candidates: Candidates) -> None:
        super().__init__()
        self.candidates, self.longest = candidates, max(candidates.spans)
        powers = [pow(RADIX, age, PRIME) for age in reversed(range(self.longest))]  # the oldest token's first
        power_LP = [[0] * (self.longest - span) + powers[self.longest - span :] for span in candidates.spans]
        self.register_buffer("power", torch.tensor(power_LP), persistent=False)

    @torch.no_grad()
    def forward(self, token_BT: Tensor) -> Links:
        """Links of whole sequences."""
        c = self.candidates
        return coincidences(context_addresses(token_BT, c.spans), c.memory_len, c.num_matches)

    def init_state(self, batch_size: int) -> Index:
        """Nothing has been read."""
        c, B, device = self.candidates, batch_size, self.power.device
        L, M = len(c.spans), c.memory_len
        return Index(
            recent=torch.full((B, 1, self.longest), NO_TOKEN, device=device),
            slots=torch.full((B * L * M, c.num_matches), EMPTY, device=device),
            length=0,
            first_slot=M * torch.arange(B * L, device=device).view(B, L),
            front=torch.tensor([M + OPENING, *range(M, M + OPENING)], device=device).repeat(B, 1),
            first_row=(M + EXTRA_ROWS) * torch.arange(B, device=device).unsqueeze(1),
            offsets=(1 + OPENING + c.number) * torch.arange(B, device=device),
        )

    def step(self, token_B: Tensor, index: Index) -> tuple[Rows, Index]:
        """Look up the contexts that end in these tokens, and take them into the index; the one given is used up."""
        recent, entries, now, first_slot, front, first_row, offsets = index
        B, M, K = len(token_B), self.candidates.memory_len, self.candidates.num_matches
        recent_B1P = torch.cat((recent.narrow(2, 1, self.longest - 1), token_B.view(-1, 1, 1)), 2)
        address_BL = ((recent_B1P + 1) * self.power).sum(-1) % PRIME
        slot_N, key_N1 = (address_BL % M + first_slot).view(-1), (address_BL * KEY).view(-1, 1)
        met_NK = entries.index_select(0, slot_N)
        entries.index_copy_(0, slot_N, torch.cat((key_N1 + (now + 1), met_NK.narrow(1, 0, K - 1)), 1))
        row_BC = torch.cat((front, (met_NK ^ key_N1).view(B, -1)), 1)
        missing_BC = row_BC >= KEY  # the address is another one
        if not isinstance(now, int) or now >= M:  # further back than M positions the rings have no values
            next_BC = row_BC[:, 1 + OPENING :]
            missing_BC[:, 1 + OPENING :] |= next_BC <= now - M
            next_BC %= M
        source = row_BC.masked_fill_(missing_BC, M + OPENING).add_(first_row).view(-1)
        index = Index(recent_B1P, entries, now + 1, first_slot, front, first_row, offsets)
        return Rows(source, missing_BC, offsets, now), index

    def prefill(self, token_BT: Tensor, index: Index) -> tuple[Rows, Index]:
        """`step` for many tokens at once."""
        c, (B, T), start = self.candidates, token_BT.shape, int(index.length)
        joined_BT = torch.cat((index.recent.squeeze(1), token_BT), 1)
        address_BTL = context_addresses(joined_BT if start else token_BT, c.spans)[:, -T:]
        contexts = self.contexts(address_BTL, index.slots, start)
        (earlier_SK,) = neighbours(contexts, c.num_matches, c.memory_len, later=False)
        next_BTC = 1 + earlier_SK[len(earlier_SK) - address_BTL.numel() :].view(B, T, -1)
        slot_U, latest_UK = latest(contexts, c.num_matches)
        index.slots[slot_U] = latest_UK
        source_NC = joined_rows(next_BTC, start, c.memory_len)
        missing_NC = F.pad(next_BTC == 0, (1 + OPENING, 0)).flatten(0, 1)
        rows = Rows(source_NC.view(-1), missing_NC, bag_offsets(source_NC), start)
        recent_B1P = kept(joined_BT[:, -self.longest :]).unsqueeze(1)
        return rows, index._replace(recent=recent_B1P, length=index.length + T)

    def contexts(self, address_BTL: Tensor, met_NK: Tensor, start: int) -> Sorted:
        """New contexts, of which the first position is `start`, and before them what their slots keep, by slot."""
        B, T, L = address_BTL.shape
        time_T11 = torch.arange(start, start + T, device=address_BTL.device).view(-1, 1, 1)
        slot_S, time_S = slots(address_BTL, self.candidates.memory_len).flatten(), time_T11.expand(B, T, 1, L).flatten()
        address_S = address_BTL.flatten()
        if start:
            slot_U = slot_S.unique()
            met_S = met_NK[slot_U].flip(1).flatten()
            slot_S = torch.cat((slot_U.repeat_interleave(self.candidates.num_matches), slot_S))
            address_S = torch.cat((met_S.div(KEY, rounding_mode="floor"), address_S))
            time_S = torch.cat((met_S % KEY - 1, time_S))
        return sort_by_slot(slot_S, address_S, time_S, len(met_NK))

    def state_bytes(self) -> int:
        """Bytes of one sequence's state: the last tokens, slots, and where slots and rows are."""
        c = self.candidates
        constant = len(c.spans) + 1 + OPENING + 2
        return 8 * (self.longest + c.memory_len * c.number + constant)


def latest(contexts: Sorted, num_matches: int) -> tuple[Tensor, Tensor]:
    """The slots of contexts, int64 (U,), and what they keep from now on, (U, K)."""
    slot_S = contexts.slot.long()
    end_U = (F.pad(slot_S, (0, 1), value=-1).diff() != 0).nonzero().squeeze(1)
    place_UK = end_U.unsqueeze(1) - torch.arange(num_matches, device=slot_S.device)
    item_UK = place_UK.clamp(min=0)  # there may be fewer than a slot keeps
    is_own_UK = (place_UK >= 0) & (slot_S[item_UK] == slot_S[end_U].unsqueeze(1))
    key_UK = contexts.address[item_UK] * KEY + contexts.time[item_UK] + 1
    return slot_S[end_U], torch.where(is_own_UK, key_UK, EMPTY)


def joined_rows(next_BTC: Tensor, start: int, memory_len: int) -> Tensor:
    """Rows of a prefill from position `start`, given the positions that came next after candidates, 0 for none.

    They count through the ring of each sequence, of which there are the last rows alone where nothing was read before,
    and then its T positions at hand: (B, T, C) -> (B T, 1 + A + C).
    """
    (B, T, _), M, device = next_BTC.shape, memory_len if start else 0, next_BTC.device
    number_BTA = opening(torch.arange(start, start + T, device=device)).expand(B, T, OPENING)
    next_BTC = torch.cat((number_BTA, next_BTC), 2)
    row_BTC = next_BTC + (M + EXTRA_ROWS - start)
    if start:
        old_BTC = torch.cat((M - 1 + number_BTA, next_BTC[..., OPENING:] % memory_len), 2)
        row_BTC = torch.where(next_BTC < start, old_BTC, row_BTC)
    row_BTC = F.pad(row_BTC, (1, 0), value=M + OPENING)
    row_BTC += (M + EXTRA_ROWS + T) * torch.arange(B, device=device).view(-1, 1, 1)
    return row_BTC.flatten(0, 1)
