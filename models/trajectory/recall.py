"""What came next: weights of the candidates, and sums of values along links with their gradients.

Shapes: B batch, T time, A positions of the opening, C candidates of a place, N = B T places (row-major), D width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.bags import gathered_dot, gathered_sum
from models.trajectory.links import OPENING, Links, opening


class _LinkedSum(torch.autograd.Function):
    """Weighted sums of what came next, whose gradients are gathered along the links into the future."""

    @staticmethod
    def forward(ctx: Any, weight_NC: Tensor, value_BTD: Tensor, *links: Tensor) -> Tensor:
        """Weights (N, A + C), values, links -> (B, T, D)."""
        source, readers = links
        row, value_ND = source.clamp(min=0), value_BTD.flatten(0, 1)
        ctx.save_for_backward(weight_NC, value_ND, row, readers)
        ctx.shape = value_BTD.shape
        return gathered_sum(weight_NC, value_ND, row).view_as(value_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of all but the links."""
        weight_NC, value_ND, row, readers = ctx.saved_tensors
        grad_ND, reader = gradients[0].reshape(len(row), -1), readers.clamp(min=0)
        grad_weight_NC = gathered_dot(grad_ND, value_ND, row)
        place = reader * weight_NC.size(1) + torch.arange(OPENING, weight_NC.size(1), device=reader.device)
        grad_BTD = gathered_sum(weight_NC.take(place) * (readers >= 0), grad_ND, reader).view(ctx.shape)
        add_opening(grad_BTD, weight_NC[:, :OPENING].view(*ctx.shape[:2], -1), grad_ND.view(ctx.shape))
        return grad_weight_NC, grad_BTD, None, None


def add_opening(grad_BTD: Tensor, weight_BTA: Tensor, read_BTD: Tensor) -> None:
    """Add to the opening's gradients what places have that read it, given the gradients of what they read.

    A position of the opening is read by all places from there on, and until then the latest one stands in for it.
    """
    number_TA = opening(torch.arange(weight_BTA.size(1), device=weight_BTA.device))
    is_over_TA = number_TA == number_TA[-1]
    grad_BTD.index_add_(1, number_TA[-1], (weight_BTA * is_over_TA).mT @ read_BTD)
    stands_in_BA1 = (weight_BTA[:, :OPENING] * ~is_over_TA[:OPENING]).sum(-1, keepdim=True)
    grad_BTD[:, :OPENING] += stands_in_BA1 * read_BTD[:, :OPENING]


def recall_weights(score_NC: Tensor, missing_NC: Tensor) -> Tensor:
    """Softmax over nothing, the opening and the candidates there are, (N, 1 + A + C); the scores are used up."""
    return score_NC.masked_fill_(missing_NC, -torch.inf).softmax(-1)


def recall(score_NC: Tensor, value_BTD: Tensor, links: Links) -> Tensor:
    """What came next after the candidates, by their scores.

    y[n] = Σ_c w[n, c] value[source[n, c]], w = softmax of the scores of nothing, the sequence's opening, and the
    candidates that there are.

    Args:
        score_NC: Scores (N, 1 + A + C).
        value_BTD: Values of all positions.
        links: Those of all places.

    Returns:
        (B, T, D).
    """
    weight_NC = recall_weights(score_NC, links.missing)[:, 1:].contiguous()
    return cast(Tensor, _LinkedSum.apply(weight_NC, value_BTD, links.source, links.readers))  # type: ignore[no-untyped-call]


def recall_reference(score_NC: Tensor, value_BTD: Tensor, links: Links) -> Tensor:
    """`recall` place by place, by the formula."""
    outputs, value_ND = [], value_BTD.flatten(0, 1)
    for fit, rows in zip(score_NC.exp(), links.source.tolist(), strict=True):
        y, total = torch.zeros_like(value_ND[0]), fit[0]
        for c, row in enumerate(rows):
            if row >= 0:
                y, total = y + fit[1 + c] * value_ND[row], total + fit[1 + c]
        outputs.append(y / total)
    return torch.stack(outputs).view_as(value_BTD)
