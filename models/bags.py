"""Sums and products of many rows of a table, without a copy of the rows.

A bag is what an index names for one place: C rows of a table for each of N places. PyTorch's fused kernels take
flattened bags, where each begins, and, for products, which bag each row is of. What is the same for many calls can be
made once.

Shapes: N bags, C rows of a bag, R rows of the table, W width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

SUM = 0  # how PyTorch's kernels number the bags that add up


def bag_offsets(index_NC: Tensor) -> Tensor:
    """Where each bag begins in the flattened index, (N,)."""
    return torch.arange(0, index_NC.numel(), index_NC.size(1), device=index_NC.device)


def bag_numbers(index_NC: Tensor) -> Tensor:
    """Which bag each entry of the flattened index is of, (N C,)."""
    return torch.arange(len(index_NC), device=index_NC.device).repeat_interleave(index_NC.size(1))


def gathered_sum(weight_NC: Tensor, table_RW: Tensor, index_NC: Tensor, offsets_N: Tensor | None = None) -> Tensor:
    """Σ_c weight[n, c] table[index[n, c]]: (N, C), (R, W), (N, C) -> (N, W); `F.embedding_bag` with less around it.

    Where the offsets are given, weights and index may have any shapes of N C numbers.
    """
    offsets_N = bag_offsets(index_NC) if offsets_N is None else offsets_N
    bags = torch.embedding_bag(table_RW, index_NC.flatten(), offsets_N, per_sample_weights=weight_NC.flatten())
    return bags[0]


def gathered_dot(
    query_NW: Tensor,
    table_RW: Tensor,
    index_NC: Tensor,
    offsets_N: Tensor | None = None,
    bags: Tensor | None = None,
) -> Tensor:
    """query[n] · table[index[n, c]]: (N, W), (R, W), (N, C) -> (N, C).

    This is what the gradient of a bag's weights is; PyTorch has no public name for it.
    """
    offsets_N = bag_offsets(index_NC) if offsets_N is None else offsets_N
    bags = bag_numbers(index_NC) if bags is None else bags
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        query_NW, table_RW, index_NC.flatten(), offsets_N, bags, SUM
    )
    return cast(Tensor, dots).view_as(index_NC)
