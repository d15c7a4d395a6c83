"""Local mixing: each channel sees a few positions before its own, in any model, by taps that are learned.

y_t = x_t + Σ_d w_d * x_{t-d}, zeros before the start, with the delays d = 1 (`shift`) or d = 0, 1, 2, 3 (`conv`: a
depthwise causal convolution of four taps, as H3, arXiv 2212.14052, and Mamba, arXiv 2312.00752, have one; Primer, arXiv
2109.08668, puts it behind the projections to queries, keys and values). The taps w_d start at zero, so that a new model
is the one without local mixing; the term x_t is the residual of a Canon layer (Allen-Zhu, arXiv 2512.17351). O(W) a
token; the state is the last one or three inputs.

Shapes: B batch, T time, W width, P width of a part, N taps, R positions that the state keeps, S = R + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.layers import Mixer, check_choice, kept

LocalMixingKind = Literal["none", "shift", "conv"]
Delays = tuple[int, ...]
DELAYS: dict[str, Delays] = {"none": (), "shift": (1,), "conv": (0, 1, 2, 3)}


class _DelayedSum(torch.autograd.Function):
    """The sum tap by tap in one tensor, as its gradient: no copy with time last, as F.conv1d would need."""

    @staticmethod
    def forward(ctx: Any, x_BTW: Tensor, tap_NW: Tensor, delays: Delays) -> Tensor:
        """(B, T, W) and taps (N, W) -> (B, T, W)."""
        ctx.save_for_backward(x_BTW, tap_NW)
        ctx.delays, y_BTW = delays, x_BTW.clone(memory_format=torch.contiguous_format)
        for delay, tap_W in zip(delays, tap_NW.unbind(), strict=True):
            y_BTW[:, delay:].addcmul_(tap_W, x_BTW[:, : max(0, x_BTW.size(1) - delay)])
        return y_BTW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Each input has the gradients of the outputs that it is in; a tap those of its products."""
        (x_BTW, tap_NW), (grad_BTW,) = ctx.saved_tensors, gradients
        dx_BTW, dtaps = grad_BTW.clone(memory_format=torch.contiguous_format), []
        for delay, tap_W in zip(ctx.delays, tap_NW.unbind(), strict=True):
            earlier = slice(0, max(0, x_BTW.size(1) - delay))
            dx_BTW[:, earlier].addcmul_(tap_W, grad_BTW[:, delay:])
            dtaps.append((grad_BTW[:, delay:] * x_BTW[:, earlier]).sum((0, 1)))
        return dx_BTW, torch.stack(dtaps), None


def delayed_sum(x_BTW: Tensor, tap_NW: Tensor, delays: Delays) -> Tensor:
    """x_t + Σ_n tap[n] * x_{t - delays[n]}, zeros before the start: (B, T, W), (N, W) -> (B, T, W)."""
    return cast(Tensor, _DelayedSum.apply(x_BTW, tap_NW, delays))  # type: ignore[no-untyped-call]


def delayed_sum_reference(x_BTW: Tensor, tap_NW: Tensor, delays: Delays) -> Tensor:
    """The same, one position after the other."""
    outputs = []
    for t in range(x_BTW.size(1)):
        seen = [tap * x_BTW[:, t - delay] for delay, tap in zip(delays, tap_NW, strict=True) if delay <= t]
        outputs.append(sum(seen, x_BTW[:, t]))
    return torch.stack(outputs, 1)


class LocalMixing(Mixer):
    """(B, T, W) -> (B, T, W): each position and, channel by channel, what is learned to be taken of those before it.

    The taps are vectors, one for each delay: to the optimizer they are no matrices.

    Args:
        width: Channels.
        kind: None, which is the identity; a shift by one position; or a convolution over four positions.
    """

    before: Tensor

    def __init__(self, width: int, kind: LocalMixingKind) -> None:
        super().__init__()
        check_choice("--model.local_mixing", kind, LocalMixingKind)
        self.width, self.delays = width, DELAYS[kind]
        self.taps = nn.ParameterList(nn.Parameter(torch.empty(width)) for _ in self.delays)
        self.register_buffer("before", torch.zeros(max(self.delays, default=0), width), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Taps zero: at the start each position is passed on as it is."""
        for tap in self.taps:
            nn.init.zeros_(tap)

    def read(self, x_BTW: Tensor, state_BRW: Tensor | None) -> tuple[Tensor, Any]:
        """(B, T, W) -> (B, T, W) after the inputs in the state, and the last inputs."""
        if not self.delays:
            return x_BTW, state_BRW
        if state_BRW is None:
            return delayed_sum(x_BTW, torch.stack(list(self.taps)).to(x_BTW.dtype), self.delays), None
        inputs_BSW, y_BTW = torch.cat((state_BRW.to(x_BTW.dtype), x_BTW), 1), x_BTW
        num_before, num_inputs = state_BRW.size(1), inputs_BSW.size(1)
        for delay, tap_W in zip(self.delays, self.taps, strict=True):
            earlier_BTW = inputs_BSW[:, num_before - delay : num_inputs - delay]
            y_BTW = torch.addcmul(y_BTW, tap_W.to(x_BTW.dtype), earlier_BTW)
        return y_BTW, kept(inputs_BSW[:, -num_before:])

    def each(self, parts: Sequence[Tensor], state_BRW: Tensor | None) -> tuple[Sequence[Tensor], Any]:
        """`read` of the W channels in several parts, such as queries, keys and values, from the start not joined."""
        if not self.delays:
            return parts, state_BRW
        widths = [x_BTP.size(-1) for x_BTP in parts]
        if state_BRW is not None:
            y_BTW, state_BRW = self.read(torch.cat(tuple(parts), -1), state_BRW)
            return y_BTW.split(widths, -1), state_BRW
        pairs = zip(parts, torch.stack(list(self.taps)).split(widths, -1), strict=True)
        return [delayed_sum(x_BTP, tap_NP.to(x_BTP.dtype), self.delays) for x_BTP, tap_NP in pairs], None

    def step(self, x_BW: Tensor, state_BRW: Tensor) -> tuple[Tensor, Any]:
        """One position (B, W) of `forward`."""
        return super().step(x_BW, state_BRW) if self.delays else (x_BW, state_BRW)

    def init_state(self, batch_size: int) -> Tensor:
        """What lies before the first position, the last inputs (B, R, W): zeros."""
        return self.before.expand(batch_size, -1, -1)

    def flops_per_token(self) -> int:
        """A multiply-add for each tap and channel."""
        return 2 * len(self.delays) * self.width

    def state_bytes(self) -> int:
        """The last inputs."""
        return self.before.numel() * self.before.element_size()
