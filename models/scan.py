"""Sums over time of any length, computed by chunks; plain, or decaying by a factor a head.

y_t = Σ_{s<=t} x_s splits into a scan inside each chunk, the carry (the sum of all earlier chunks' totals), and their
combination. Chunks are independent of each other, which a GPU likes, and additions chain over a chunk and the number of
chunks instead of over all of time, so that rounding errors stay small. O(T) work, no maximum length. A sum that decays,
y_t = Σ_{s<=t} λ^(t-s) x_s, is a product of each chunk with a matrix of powers, as retention's (arXiv 2307.08621): O(T
C) work.

Shapes: B batch, T time, D width, H heads, K width of a head, N chunks, C positions of a chunk.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SIZE = 64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of `dtype` are kept in: float32, or float64 where that is what is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast, if it is on for the device of x, leaves types as they are."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def split_chunks(x_BTD: Tensor, chunk_size: int) -> Tensor:
    """(B, T, D) -> (B, N, C, D), the last chunk filled up with zeros; a chunk is never longer than the sequence."""
    chunk_size = min(chunk_size, x_BTD.size(1))
    if x_BTD.size(1) % chunk_size:
        x_BTD = F.pad(x_BTD, (0, 0, 0, -x_BTD.size(1) % chunk_size))
    x_BNCD: Tensor = x_BTD.unflatten(1, (-1, chunk_size))
    return x_BNCD


def chunked_sum(x_BTD: Tensor, chunk_size: int) -> Tensor:
    """Inclusive sums over time of (B, T, D): scan of each chunk, then the earlier chunks' totals on top."""
    y_BNCD = split_chunks(x_BTD, chunk_size).cumsum(2)
    y_BNCD[:, 1:] += y_BNCD[:, :-1, -1].cumsum(1).unsqueeze(2)
    return y_BNCD.flatten(1, 2)[:, : x_BTD.size(1)]


def reversed_sum(x_BTD: Tensor, chunk_size: int) -> Tensor:
    """Sums over each position and all later ones: from the totals of its own and later chunks, what came before."""
    x_BNCD = split_chunks(x_BTD, chunk_size)
    y_BNCD = x_BNCD.cumsum(2)
    rest_BND = y_BNCD[:, :, -1].flip(1).cumsum(1).flip(1)
    y_BNCD = torch.sub(x_BNCD, y_BNCD).add_(rest_BND.unsqueeze(2))
    return y_BNCD.flatten(1, 2)[:, : x_BTD.size(1)]


class _CumulativeSum(torch.autograd.Function):
    """A sum over time whose gradient is the reversed sum: it keeps nothing for the backward pass and copies less."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, chunk_size: int) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        ctx.chunk_size = chunk_size
        return chunked_sum(x_BTD, chunk_size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Every later output has the position in it."""
        return reversed_sum(gradients[0], ctx.chunk_size), None


def cumulative_sum(x_BTD: Tensor, chunk_size: int = CHUNK_SIZE, before_BD: Tensor | None = None) -> Tensor:
    """Inclusive sums over time: (B, T, D) -> (B, T, D) in float32, or in float64 if that is given.

    They go on from the sum `before_BD` of what came before, if anything did.

    `chunk_size` positions are summed one after the other; it matters for speed and rounding only. For 65,536 standard
    normal numbers, in 128 columns, float32 on CPU is at most 7e-5 away from float64, where sums reach 684 (root mean
    square 4e-8 of theirs); a float32 loop is 5e-3 away.
    """
    sum_BTD = x_BTD.to(accumulation_dtype(x_BTD.dtype))
    if x_BTD.size(1) > 1:
        sum_BTD = _CumulativeSum.apply(sum_BTD, chunk_size)  # type: ignore[no-untyped-call]
    return sum_BTD if before_BD is None else sum_BTD + before_BD.unsqueeze(1)


def cumulative_sum_reference(x_BTD: Tensor) -> Tensor:
    """The same, one position after the other."""
    total_BD, sums = torch.zeros_like(x_BTD[:, 0], dtype=accumulation_dtype(x_BTD.dtype)), []
    for x_BD in x_BTD.unbind(1):
        total_BD = total_BD + x_BD
        sums.append(total_BD)
    return torch.stack(sums, 1)


def decayed_sum(x_BTHK: Tensor, log_decay_H: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Inclusive sums that decay, Σ_{s<=t} exp(log_decay (t - s)) x_s, head by head, in float32 at least.

    (B, T, H, K) and logarithms of factors of at most 1, (H,) -> (B, T, H, K). Inside a chunk it is a matrix product;
    the chunks' totals add up by doubling. The chunk size matters for speed and rounding only.
    """
    num_heads, length, dtype = x_BTHK.size(2), x_BTHK.size(1), accumulation_dtype(x_BTHK.dtype)
    with full_precision(x_BTHK):
        x_BNCHK = split_chunks(x_BTHK.to(dtype).flatten(2), chunk_size).unflatten(-1, (num_heads, -1))
        num_chunks, size = x_BNCHK.shape[1:3]
        log_decay_H = log_decay_H.to(dtype)
        age_C = torch.arange(size, device=x_BTHK.device)
        age_CC = (age_C.unsqueeze(1) - age_C).clamp_min(0)  # a later position would overflow before it is cut off
        weight_HCC = (log_decay_H.view(-1, 1, 1) * age_CC).exp().tril()
        y_BNCHK = torch.einsum("hts,bnshk->bnthk", weight_HCC, x_BNCHK)
        carry_BNHK = y_BNCHK[:, :, -1]
        distance_L11 = 2 ** torch.arange((num_chunks - 1).bit_length(), device=x_BTHK.device).view(-1, 1, 1)
        faded_LH1 = (log_decay_H.unsqueeze(-1) * size * distance_L11).exp()  # over 1, 2, 4, ... chunks
        for level, faded_H1 in enumerate(faded_LH1.unbind()):
            carry_BNHK = carry_BNHK + _delayed(carry_BNHK, 2**level) * faded_H1
        fading_CH1 = (log_decay_H * (age_C + 1).unsqueeze(-1)).exp().unsqueeze(-1)
        y_BNCHK = y_BNCHK + _delayed(carry_BNHK, 1).unsqueeze(2) * fading_CH1
    return y_BNCHK.flatten(1, 2)[:, :length]


def _delayed(x_BNHK: Tensor, chunks: int) -> Tensor:
    """Each chunk's entry `chunks` later, zeros first."""
    return F.pad(x_BNHK, (0, 0, 0, 0, chunks, 0))[:, : x_BNHK.size(1)]


def decayed_sum_reference(x_BTHK: Tensor, log_decay_H: Tensor) -> Tensor:
    """The same, one position after the other."""
    total_BHK, sums = torch.zeros_like(x_BTHK[:, 0], dtype=accumulation_dtype(x_BTHK.dtype)), []
    for x_BHK in x_BTHK.unbind(1):
        total_BHK = log_decay_H.exp().unsqueeze(-1) * total_BHK + x_BHK
        sums.append(total_BHK)
    return torch.stack(sums, 1)
