"""Where in the past was this before, and what came next? The operators of trajectory memory, parallel over time.

A symbol is an integer; the address of its context, the last n symbols, is a polynomial hash modulo the Mersenne prime
2^31 - 1 (Karp & Rabin 1987), put together by doubling: a_{m+n}[t] = a_m[t] + R^m a_n[t - m]. An address has a slot,
address mod num_slots, which keeps the latest K positions that met it; those of the same address coincide. One stable
radix sort by slot finds them all: neighbours in it are neighbours in time. As a position is the k-th latest of at most
one later position, the links can be followed both ways, and gradients are gathered like values, never scattered.

Shapes: B batch, T time, H heads, L spans of contexts, K positions of a slot, N = B T H places (row-major), C candidates
of a place, S = N L contexts, E bits of a code, V width of a value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.bags import gathered_dot, gathered_sum

PRIME = 2**31 - 1  # products of two residues stay below 2^62: nothing overflows int64
RADIX = 1_566_083_941  # of the polynomial
MIXER = 2_135_587_861  # spreads symbols over the residues
MAX_BITS = 30  # of a symbol, which must be a residue
CEILING = 60.0  # of a score over that of recalling nothing, so that its exponential stays finite


class Links(NamedTuple):
    """Candidates of each place and, the other way, the places whose candidate it is: int64 (N, C), -1 for none.

    later[n, c] = m where earlier[m, c] = n.
    """

    earlier: Tensor
    later: Tensor


def bit_values(bits: int) -> Tensor:
    """What each bit of a symbol adds to its address: 2^e MIXER modulo the prime, (E,)."""
    return torch.tensor([(MIXER << e) % PRIME for e in range(bits)])


def symbol_addresses(code: Tensor, bit_E: Tensor) -> Tensor:
    """The address of the one symbol whose bits are the signs of a code: (..., E), values (E,) -> (...), never zero.

    It is (1 + symbol) MIXER modulo the prime.
    """
    return ((code > 0) * bit_E).sum(-1).add_(MIXER).remainder_(PRIME)


def joined(recent_BTH: Tensor, num_recent: int, before_BTH: Tensor) -> Tensor:
    """The address of two contexts one after the other, from those of the `num_recent` symbols and of those before."""
    delayed_BTH = F.pad(before_BTH, (0, 0, num_recent, 0))[:, : recent_BTH.size(1)]
    return (recent_BTH + pow(RADIX, num_recent, PRIME) * delayed_BTH) % PRIME


def context_addresses(symbol_BTH: Tensor, spans: Sequence[int]) -> Tensor:
    """Addresses of contexts of these many symbols, each span at least 1: (B, T, H) -> (B, T, H, L)."""
    power, found = symbol_BTH, dict.fromkeys(spans, cast(Tensor | None, None))
    for exponent in range(max(spans).bit_length()):  # the powers of two that a span is made of, the least last in time
        for span in found:
            if span >> exponent & 1:
                before, below = found[span], span & ((1 << exponent) - 1)
                found[span] = power if before is None else joined(before, below, power)
        power = joined(power, 1 << exponent, power)
    return torch.stack([cast(Tensor, found[span]) for span in spans], -1)


def powers(length: int) -> Tensor:
    """R^i modulo the prime for i < length, which `last_addresses` takes: (S,)."""
    return torch.tensor([pow(RADIX, i, PRIME) for i in range(length)])


def last_addresses(symbol_BSH: Tensor, power_S1: Tensor, last_L: Tensor) -> Tensor:
    """`context_addresses` of one position, by the polynomial: symbols, latest first, and spans less 1 -> (B, L, H)."""
    return (symbol_BSH * power_S1).remainder_(PRIME).cumsum(1).index_select(1, last_L).remainder_(PRIME)


def coincidences(address_BTHL: Tensor, num_slots: int | None, num_matches: int) -> Links:
    """Links between the K latest positions of a slot where their addresses are equal, with C = L K candidates.

    Without `num_slots` each address has its own slot. ValueError if slots cannot be numbered in 63 bits.
    """
    B, T, H, L = address_BTHL.shape
    size, tables = num_slots or PRIME, B * H * L
    if tables * size >= 2**63:
        raise ValueError(f"{B} sequences with {H * L} tables each have too many slots; use a smaller batch")
    table_BHL = torch.arange(tables, device=address_BTHL.device).view(B, 1, H, L)
    slot_S = (table_BHL * size + address_BTHL % size).flatten()
    # Half the passes of the sort, where the numbers are small enough.
    slot_S, order_S = (slot_S.int() if tables * size < 2**31 else slot_S).sort(dim=0, stable=True)
    address_S, place_S = address_BTHL.flatten()[order_S], order_S // L
    links = torch.full((2, len(order_S), num_matches), -1, device=order_S.device)
    for k in range(1, min(num_matches, len(order_S) - 1) + 1):
        same = (slot_S[k:] == slot_S[:-k]) & (address_S[k:] == address_S[:-k])
        links[0, k:, k - 1] = torch.where(same, place_S[:-k], -1)
        links[1, :-k, k - 1] = torch.where(same, place_S[k:], -1)
    earlier, later = torch.empty_like(links).index_copy_(1, order_S, links).view(2, B * T * H, L * num_matches)
    return Links(earlier, later)


def coincidences_reference(address_BTHL: Tensor, num_slots: int | None, num_matches: int) -> Links:
    """`coincidences` by looking at all pairs of positions."""
    B, T, H, L = address_BTHL.shape
    links = torch.full((2, B, T, H, L, num_matches), -1)
    for b, t, h, n in itertools.product(range(B), range(T), range(H), range(L)):
        address = address_BTHL[b, :, h, n].tolist()
        slot = [a % (num_slots or PRIME) for a in address]
        kept = [s for s in reversed(range(t)) if slot[s] == slot[t]][:num_matches]
        for k, s in enumerate(kept):
            if address[s] == address[t]:
                links[0, b, t, h, n, k] = (b * T + s) * H + h
                links[1, b, s, h, n, k] = (b * T + t) * H + h
    return Links(*links.view(2, B * T * H, L * num_matches))


def reactivations(delay_BH: Tensor, seq_len: int) -> Links:
    """Links from each position to that `delay` before it, delays at least 1: (B, H) -> one candidate a place."""
    (B, H), T = delay_BH.shape, seq_len
    place_BTH = torch.arange(B * T * H, device=delay_BH.device).view(B, T, H)
    t_T1, delay_B1H = torch.arange(T, device=delay_BH.device)[:, None], delay_BH[:, None]
    earlier = torch.where(t_T1 >= delay_B1H, place_BTH - H * delay_B1H, -1)
    later = torch.where(t_T1 + delay_B1H < T, place_BTH + H * delay_B1H, -1)
    return Links(earlier.view(-1, 1), later.view(-1, 1))


def recall_weights(excess: Tensor, exists: Tensor) -> Tensor:
    """Softmax over nothing and the candidates that exist, without the weight of nothing.

    Args:
        excess: Scores of the candidates over that of nothing, (..., C); changed in place.
        exists: Which candidates there are, (..., C).
    """
    odds = excess.clamp_(max=CEILING).exp_().mul_(exists)
    return odds / (1 + odds.sum(-1, keepdim=True))


class Recall(torch.autograd.Function):
    """What came next after the candidates, weighted; see `recall_reference` for the formula."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, code_NE: Tensor, next_NV: Tensor, scale: float, *links: Tensor) -> Tensor:
        """Scores (N, 1 + C), codes, values of the successors, coherence / E, links -> (N, V)."""
        earlier, later = links
        exists, index = earlier >= 0, earlier.clamp(min=0)
        excess_NC = torch.add(score[:, 1:] - score[:, :1], gathered_dot(code_NE, code_NE, index), alpha=scale)
        weight_NC = recall_weights(excess_NC, exists)
        ctx.save_for_backward(code_NE, next_NV, index, later, weight_NC)
        ctx.scale = scale
        return gathered_sum(weight_NC, next_NV, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all but the links; those of tables are gathered along the links into the future."""
        code_NE, next_NV, index, later, weight_NC = ctx.saved_tensors
        grad_NV, C = grad_NV.contiguous(), index.size(1)
        grad_weight = gathered_dot(grad_NV, next_NV, index)
        grad_bonus = weight_NC * (grad_weight - (weight_NC * grad_weight).sum(1, keepdim=True))
        grad_score = torch.cat((-grad_bonus.sum(1, keepdim=True), grad_bonus), 1)
        grad_dot = ctx.scale * grad_bonus
        link_NC, used = later.clamp(min=0), later >= 0
        link_place = link_NC * C + torch.arange(C, device=later.device)
        grad_code = gathered_sum(grad_dot, code_NE, index)
        grad_code += gathered_sum(grad_dot.take(link_place) * used, code_NE, link_NC)
        grad_next = gathered_sum(weight_NC.take(link_place) * used, grad_NV, link_NC)
        return grad_score, grad_code, grad_next, None, None, None


def recall(score: Tensor, code_NE: Tensor, value_NV: Tensor, links: Links, num_heads: int, coherence: float) -> Tensor:
    """What came next after the candidates, by how well they fit.

    y[n] = Σ_c w[n, c] value[earlier[n, c] + H], w = softmax of the score of nothing and the candidates' scores plus
    coherence · mean_e code[n] code[earlier[n, c]]. Gradients of a score above CEILING are as if it were below.

    Args:
        score: Scores of nothing and of each candidate, (N, 1 + C).
        code_NE: Soft symbols in -1 ... 1.
        value_NV: Values; the successor of a place is H places later.
        links: The candidates, each at least one position earlier.
        num_heads: H.
        coherence: What a candidate gains at most by a code like that of its place.

    Returns:
        (N, V).
    """
    next_NV = F.pad(value_NV[num_heads:], (0, 0, 0, min(num_heads, len(value_NV))))
    return cast(Tensor, Recall.apply(score, code_NE, next_NV, coherence / code_NE.size(1), *links))  # type: ignore[no-untyped-call]


def recall_reference(
    score: Tensor, code_NE: Tensor, value_NV: Tensor, links: Links, num_heads: int, coherence: float
) -> Tensor:
    """`recall` place by place, by the formula."""
    outputs = []
    for n, candidates in enumerate(links.earlier.tolist()):
        y, total = torch.zeros_like(value_NV[0]), score[n, 0].exp()
        for c, m in enumerate(candidates):
            if m >= 0:
                fit = (score[n, 1 + c] + coherence * (code_NE[n] * code_NE[m]).mean()).exp()
                y, total = y + fit * value_NV[m + num_heads], total + fit
        outputs.append(y / total)
    return torch.stack(outputs)
