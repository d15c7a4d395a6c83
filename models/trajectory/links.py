"""Where was the recent past before? Links between equal contexts of tokens, for all positions by one sort.

The context of span n at a position is its last n tokens. Its address is a polynomial hash modulo the Mersenne prime
2^31 - 1 (Karp & Rabin 1987), put together by doubling: a_{m+n}[t] = a_m[t] + R^m a_n[t - m]. An address has a slot,
address mod the number of slots, which keeps the latest K positions that met it; those of the same address coincide. One
stable sort by slot finds them all: neighbours in it are neighbours in time. Links are integers, made of tokens alone:
neither rounding nor the shape of a batch can change them.

Shapes: B batch, T time, L spans, K positions of a slot, A positions of the opening, C = L K candidates of a
place, N = B T places (row-major), S = N L contexts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import check_positive

PRIME = 2**31 - 1  # products of two residues stay below 2^62: nothing overflows int64
RADIX = 1_566_083_941  # of the polynomial
OPENING = 4  # positions after the first one that can always be recalled, as StreamingLLM (arXiv 2309.17453) keeps four
SPANS = (1, 2, 3, 4, 6, 8)
MAX_SPAN = 4096  # tokens that a context can name; the streaming state keeps as many
MAX_NUMBERS = 2**32  # tokens of a context times vocabulary: their products with residues add up to less than 2^63


@dataclass(frozen=True)
class Candidates:
    """Which earlier positions a place may recall what followed of, the same for all layers.

    Args:
        spans: Numbers of tokens that a context consists of.
        num_matches: Latest positions of the same context, for each span.
        memory_len: Positions back to which there are any, and slots of a span.

    Raises:
        ValueError: For numbers that are out of their range.
    """

    spans: tuple[int, ...] = SPANS
    num_matches: int = 4
    memory_len: int = 8192

    def __post_init__(self) -> None:
        check_positive(num_matches=self.num_matches)
        are_lengths = all(1 <= span <= MAX_SPAN for span in self.spans)
        if not self.spans or not are_lengths or len(set(self.spans)) < len(self.spans):
            raise ValueError(
                f"--model.spans is {list(self.spans)}; it needs different numbers of tokens from 1 to {MAX_SPAN}"
            )
        if not 1 <= self.memory_len <= PRIME:
            raise ValueError(f"--model.memory_len is {self.memory_len}; it must be 1 to {PRIME}")

    @property
    def number(self) -> int:
        """How many a place has at most, C."""
        return len(self.spans) * self.num_matches


class Links(NamedTuple):
    """What came next after each place's candidates, and the other way round.

    source: places of what is recalled, int64 (N, A + C), -1 for none: first the sequence's opening, then the position
    after each candidate. readers[r, c] = n where source[n, A + c] = r, int64 (N, C): a position is the k-th latest of
    at most one later position, so that gradients are gathered, too. missing: which there are not, of nothing, the
    opening and the candidates, (N, 1 + A + C).
    """

    source: Tensor
    readers: Tensor
    missing: Tensor


def opening(time_T: Tensor) -> Tensor:
    """Which positions are the opening at a time: 1, ..., A, or the latest one, if that is before: (T,) -> (T, A)."""
    return torch.minimum(time_T.unsqueeze(1), torch.arange(1, OPENING + 1, device=time_T.device))


def joined(recent_BT: Tensor, num_recent: int, before_BT: Tensor) -> Tensor:
    """The address of two contexts one after the other, from those of the `num_recent` tokens and of those before."""
    delayed_BT = F.pad(before_BT, (num_recent, 0))[:, : recent_BT.size(1)]
    return (recent_BT + pow(RADIX, num_recent, PRIME) * delayed_BT) % PRIME


def context_addresses(token_BT: Tensor, spans: Sequence[int]) -> Tensor:
    """Addresses of contexts of these many tokens: (B, T) -> (B, T, L). A token's is its number, counted from 1."""
    power, found = 1 + token_BT, dict.fromkeys(spans, cast(Tensor | None, None))
    for exponent in range(max(spans).bit_length()):  # the powers of two that a span is made of, the least last in time
        for span in found:
            if span >> exponent & 1:
                before, below = found[span], span & ((1 << exponent) - 1)
                found[span] = power if before is None else joined(before, below, power)
        power = joined(power, 1 << exponent, power)
    return torch.stack([cast(Tensor, found[span]) for span in spans], -1)


class Sorted(NamedTuple):
    """Contexts by slot, and in each slot by time: their order, slots, addresses and times, all (S,)."""

    order: Tensor
    slot: Tensor
    address: Tensor
    time: Tensor


def sort_by_slot(slot_S: Tensor, address_S: Tensor, time_S: Tensor, num_slots: int) -> Sorted:
    """Sort contexts that are given in the order of time, by slots below `num_slots`."""
    # Half the passes of the sort, where the numbers are small enough.
    slot_S, order_S = (slot_S.int() if num_slots <= 2**31 else slot_S).sort(dim=0, stable=True)
    return Sorted(order_S, slot_S, address_S[order_S], time_S[order_S])


def neighbours(contexts: Sorted, num_matches: int, memory_len: int, later: bool = True) -> Tensor:
    """Times of the K earlier and of the K later contexts of a slot, where addresses are equal: (2, S, K), -1 for none.

    In the order that the contexts had before they were sorted. None is further away than `memory_len`. Without `later`
    the earlier ones alone, (1, S, K).
    """
    order_S, slot_S, address_S, time_S = contexts
    times = torch.full((2 if later else 1, len(order_S), num_matches), -1, device=order_S.device)
    for k in range(1, min(num_matches, len(order_S) - 1) + 1):
        same = (slot_S[k:] == slot_S[:-k]) & (address_S[k:] == address_S[:-k])
        same &= time_S[k:] - time_S[:-k] <= memory_len
        times[0, k:, k - 1] = torch.where(same, time_S[:-k], -1)
        if later:
            times[1, :-k, k - 1] = torch.where(same, time_S[k:], -1)
    return torch.empty_like(times).index_copy_(1, order_S, times)


def slots(address_BTL: Tensor, num_slots: int) -> Tensor:
    """The number of each address's slot; each sequence and span has slots of its own: (B, T, L)."""
    B, _, L = address_BTL.shape
    table_B1L = torch.arange(B * L, device=address_BTL.device).view(B, 1, L)
    return table_B1L * num_slots + address_BTL % num_slots


def coincidences(address_BTL: Tensor, memory_len: int, num_matches: int) -> Links:
    """Links of whole sequences, from the addresses of their contexts; each span has `memory_len` slots."""
    B, T, L = address_BTL.shape
    place_BT1 = torch.arange(B * T, device=address_BTL.device).view(B, T, 1)
    slot_S, time_S = slots(address_BTL, memory_len).flatten(), place_BT1.expand(-1, -1, L).flatten()
    by_slot = sort_by_slot(slot_S, address_BTL.flatten(), time_S, B * L * memory_len)
    earlier_NC, later_NC = neighbours(by_slot, num_matches, memory_len).view(2, B * T, -1)
    exists_NC, opening_BTA = earlier_NC >= 0, place_BT1[:, :1] + opening(place_BT1[0, :, 0])
    source_NC = torch.cat((opening_BTA.flatten(0, 1), torch.where(exists_NC, earlier_NC + 1, -1)), 1)
    # A position is read by what coincides with the one before it; the last of a sequence coincides with nothing later.
    readers_NC = F.pad(later_NC, (0, 0, 1, 0), value=-1)[:-1]
    return Links(source_NC, readers_NC, F.pad(~exists_NC, (1 + OPENING, 0)))


def coincidences_reference(address_BTL: Tensor, memory_len: int, num_matches: int) -> Links:
    """`coincidences` by looking at all pairs of positions."""
    B, T, L = address_BTL.shape
    source = torch.full((B, T, OPENING + L * num_matches), -1)
    readers = torch.full((B * T, L * num_matches), -1)
    for a in range(OPENING):
        source[:, :, a] = torch.arange(B)[:, None] * T + torch.arange(T).clamp(max=1 + a)
    for b, t, n in itertools.product(range(B), range(T), range(L)):
        address = address_BTL[b, :, n].tolist()
        slot = [a % memory_len for a in address]
        kept = [s for s in reversed(range(t)) if slot[s] == slot[t]][:num_matches]
        for k, s in enumerate(kept):
            if address[s] == address[t] and t - s <= memory_len:
                source[b, t, OPENING + n * num_matches + k] = b * T + s + 1
                readers[b * T + s + 1, n * num_matches + k] = b * T + t
    source_NC = source.flatten(0, 1)
    return Links(source_NC, readers, F.pad(source_NC < 0, (1, 0)))
