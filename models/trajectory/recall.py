"""What came next: weights of the candidates, and sums of values along links with their gradients.

Shapes: B batch, T time, H heads, A positions of the opening, C candidates of a place, N = B T places (row-major), D
width, V = D / H of a head, R rows of a table.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.bags import gathered_dot, gathered_sum
from models.trajectory.links import OPENING, Links


class _LinkedSum(torch.autograd.Function):
    """Weighted sums of what came next, whose gradients are gathered along the links into the future."""

    @staticmethod
    def forward(ctx: Any, weight_NHC: Tensor, value_BTD: Tensor, *links: Tensor) -> Tensor:
        """Weights (N, H, A + C), values, links of the heads -> (B, T, D)."""
        source, readers = links
        row, weight_PC = source.clamp(min=0), weight_NHC.flatten(0, 1)  # P = N H
        table_PV = value_BTD.view(len(row), -1)
        ctx.save_for_backward(weight_PC, table_PV, row, readers)
        ctx.shape = value_BTD.shape
        return gathered_sum(weight_PC, table_PV, row).view_as(value_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of all but the links."""
        weight_PC, table_PV, row, readers = ctx.saved_tensors
        B, T, _ = ctx.shape
        grad_PV, reader = gradients[0].reshape(len(row), -1), readers.clamp(min=0)
        grad_weight = gathered_dot(grad_PV, table_PV, row)
        place = reader * weight_PC.size(1) + torch.arange(OPENING, weight_PC.size(1), device=reader.device)
        grad_BTD = gathered_sum(weight_PC.take(place) * (readers >= 0), grad_PV, reader).view(ctx.shape)
        for a, weight_P in enumerate(weight_PC[:, :OPENING].unbind(1)):  # read by all places from there on
            number, opened_BTD = min(1 + a, T - 1), (weight_P.unsqueeze(1) * grad_PV).view(ctx.shape)
            grad_BTD[:, :number] += opened_BTD[:, :number]
            grad_BTD[:, number] += opened_BTD[:, number:].sum(1)
        return grad_weight.view(B * T, -1, weight_PC.size(1)), grad_BTD, None, None


def recall_weights(score_NHC: Tensor, missing_N1C: Tensor) -> Tensor:
    """Softmax over nothing, the opening and the candidates there are, (N, H, 1 + A + C); the scores are used up."""
    return score_NHC.masked_fill_(missing_N1C, -torch.inf).softmax(-1)


def recall(score_NHC: Tensor, value_BTD: Tensor, links: Links) -> Tensor:
    """What came next after the candidates, by their scores, each head its part of the width.

    y[n] = Σ_c w[n, c] value[source[n, c]], w = softmax of the scores of nothing, the sequence's opening, and the
    candidates that there are.

    Args:
        score_NHC: Scores (N, H, 1 + A + C).
        value_BTD: Values of all positions.
        links: Those of all places and heads.

    Returns:
        (B, T, D).
    """
    weight_NHC = recall_weights(score_NHC, links.missing)[..., 1:].contiguous()
    return cast(Tensor, _LinkedSum.apply(weight_NHC, value_BTD, links.source, links.readers))  # type: ignore[no-untyped-call]


def recall_reference(score_NHC: Tensor, value_BTD: Tensor, links: Links) -> Tensor:
    """`recall` place by place, by the formula."""
    outputs, H = [], score_NHC.size(1)
    table_PV = value_BTD.reshape(len(links.source), -1)
    for place, rows in enumerate(links.source.tolist()):
        fit = score_NHC[place // H, place % H].exp()
        y, total = torch.zeros_like(table_PV[0]), fit[0]
        for c, row in enumerate(rows):
            if row >= 0:
                y, total = y + fit[1 + c] * table_PV[row], total + fit[1 + c]
        outputs.append(y / total)
    return torch.stack(outputs).view_as(value_BTD)
