"""Counting: tokens write learned lengths of a tape, and a pointer that moves by learned lengths reads it.

    end[t] = Σ_{s <= t} a[s]                       a = sigmoid(write · x): the tape from end[t - 1] to end[t] holds x[t]
    pointer[t] = min(Σ_{s <= t} b[s], end[t])      b = sigmoid(move · x)
    y[t] = mean of the tape from pointer[t] - (n + 1) / 2 to pointer[t] + (n - 1) / 2,  n = 1, 4, 16, 64

for a normalised input x (B, T, D). A token of length 0 is left out, and one that moves the pointer by 1 reads on: so
the n-th of what counts is found, wherever it stands. Both are learned by gradients, as the tape is read where the
pointer is, not at a place that is chosen: y is the difference of two integrals, which are cumulative sums, linear in
between. The wide windows tell the pointer where it should be before the narrow ones can, and the width is divided among
the windows. O(T D) work and a binary search, no loop over time.

Continuous integrate-and-fire (Dong & Xu, arXiv 1905.11235) cuts a sequence where such a sum passes whole numbers, once
for each; here a second sum says what is read, and when.

Shapes: B batch, T time, D width, W windows, N ends of the tape, of which the first is that before its tokens,
M positions that are remembered.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.bags import gathered_dot, gathered_sum
from models.layers import kept
from models.scan import accumulation_dtype, full_precision

WINDOWS = (1, 4, 16, 64)  # lengths of tape that are read
AT_START = (0.0, -3.0)  # biases: each token writes half a unit, and the pointer hardly moves
TINY = 1e-9  # of tape: less is not divided by


class _GatheredSum(torch.autograd.Function):
    """`gathered_sum`, whose gradient of the table PyTorch finds three times as slowly."""

    @staticmethod
    def forward(ctx: Any, weight_PC: Tensor, table_RV: Tensor, row_PC: Tensor) -> Tensor:
        """Weights, table and rows -> (P, V)."""
        ctx.save_for_backward(weight_PC, table_RV, row_PC)
        return gathered_sum(weight_PC, table_RV, row_PC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the weights and the table."""
        (weight_PC, table_RV, row_PC), (grad_PV,) = ctx.saved_tensors, gradients
        grad_PV, grad_RV = grad_PV.contiguous(), torch.zeros_like(table_RV)
        for weight_P, row_P in zip(weight_PC.unbind(1), row_PC.unbind(1), strict=True):
            grad_RV.index_add_(0, row_P, weight_P.unsqueeze(1) * grad_PV)
        return gathered_dot(grad_PV, table_RV, row_PC), grad_RV, None


class TapeState(NamedTuple):
    """The tape's ends after tokens (B, N), its integrals up to there (B, N, D), the pointers' ways (B,); float64.

    Streaming keeps a ring of N = M + 1: the end after n tokens in row n mod N, zeros where there were none.
    """

    ends: Tensor
    sums: Tensor
    moved: Tensor


class Tape(nn.Module):
    """Normalised (B, T, D) -> what the pointer reads (B, T, D).

    Args:
        d_model: Width.
        memory_len: Positions whose tape is kept.

    Raises:
        ValueError: If the windows cannot have equal parts of the width.
    """

    part_W11: Tensor
    length_W: Tensor
    sign_W22: Tensor

    def __init__(self, d_model: int, memory_len: int) -> None:
        super().__init__()
        if d_model % len(WINDOWS):
            raise ValueError(
                f"--model.tape true divides --model.d_model {d_model} among {len(WINDOWS)} windows; choose a multiple "
                f"of {len(WINDOWS)}"
            )
        self.d_model, self.memory_len = d_model, memory_len
        self.gates = nn.Linear(d_model, 2)
        self.register_buffer("part_W11", torch.arange(len(WINDOWS)).view(-1, 1, 1), persistent=False)
        length_W = torch.tensor(WINDOWS, dtype=torch.float64)
        self.register_buffer("length_W", length_W, persistent=False)
        sign_W22 = torch.tensor([[-1.0], [1.0]]) / length_W.view(-1, 1, 1)
        self.register_buffer("sign_W22", sign_W22, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """All tokens alike at first."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(AT_START))

    def init_state(self, batch_size: int, num_ends: int | None = None) -> TapeState:
        """An empty tape."""
        B, N, device = batch_size, 1 + self.memory_len if num_ends is None else num_ends, self.part_W11.device
        shapes = (B, N), (B, N, self.d_model), (B,)
        return TapeState(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Whole sequences."""
        return self.extended(x_BTD, self.init_state(len(x_BTD), num_ends=1))[0]

    def step(self, x_BD: Tensor, state: TapeState, now: int | Tensor) -> tuple[Tensor, TapeState]:
        """One position (B, D) of `forward`, before which `now` were read; the state that is given is used up."""
        ends, sums, N = state.ends, state.sums, 1 + self.memory_len
        latest, new, oldest = now % N, (now + 1) % N, (now + 2) % N
        wrote_B1, moves_B1 = self.lengths(x_BD.unsqueeze(1))
        moved_B1 = state.moved.unsqueeze(1) + moves_B1
        ends[:, at(new)] = ends[:, at(latest)] + wrote_B1
        sums[:, at(new)] = sums[:, at(latest)] + (wrote_B1 * x_BD).unsqueeze(1)
        end_BN = ends.roll(-oldest, 1) if isinstance(oldest, int) else ends[:, self.rows(now + 1)]
        bound_B2QW = bounds(moved_B1, end_BN[:, -1:], end_BN[:, :1], self.length_W)
        y_BQD = self.read(end_BN, sums, bound_B2QW, oldest)
        return y_BQD.squeeze(1).to(x_BD.dtype), state._replace(moved=moved_B1.squeeze(1))

    def prefill(self, x_BTD: Tensor, state: TapeState, now: int) -> tuple[Tensor, TapeState]:
        """`step` for many positions (B, T, D) at once."""
        N, row_N = 1 + self.memory_len, self.rows(now)[-1 - now :]
        y_BTD, (ends, sums, moved_B) = self.extended(
            x_BTD, TapeState(state.ends[:, row_N], state.sums[:, row_N], state.moved)
        )
        kept_N = self.rows(now + x_BTD.size(1))[-sums.size(1) :]
        state.ends[:, kept_N], state.sums[:, kept_N] = ends[:, -N:], sums[:, -N:]
        return y_BTD, state._replace(moved=kept(moved_B))

    def rows(self, num_tokens: int | Tensor) -> Tensor:
        """Rows of a ring after so many tokens, the latest last: (N,)."""
        N = 1 + self.memory_len
        return (num_tokens + 1 + torch.arange(N, device=self.part_W11.device)) % N

    def extended(self, x_BTD: Tensor, tape: TapeState) -> tuple[Tensor, TapeState]:
        """What is read at positions that write on, and the longer tape."""
        num_before, T = tape.sums.size(1), x_BTD.size(1)
        wrote_BT, moves_BT = self.lengths(x_BTD)
        end_BN = torch.cat((tape.ends, tape.ends[:, -1:] + wrote_BT.cumsum(1)), 1)
        sum_BND = torch.cat((tape.sums, tape.sums[:, -1:] + (wrote_BT.unsqueeze(2) * x_BTD).cumsum(1)), 1)
        moved_BT = tape.moved.unsqueeze(1) + moves_BT.cumsum(1)
        oldest_T = (torch.arange(T, device=x_BTD.device) + num_before - self.memory_len).clamp(min=0)
        bound_B2TW = bounds(moved_BT, end_BN[:, num_before:], end_BN[:, oldest_T], self.length_W)
        y_BTD = self.read(end_BN, sum_BND, bound_B2TW)
        return y_BTD.to(x_BTD.dtype), TapeState(end_BN, sum_BND, moved_BT[:, -1])

    def lengths(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """How much tape a token writes, and how far the pointer moves: (B, T, D) -> twice (B, T)."""
        with full_precision(x_BTD):
            gates, dtype = self.gates, accumulation_dtype(x_BTD.dtype)
            logits_BT2 = F.linear(x_BTD.to(dtype), gates.weight.to(dtype), gates.bias.to(dtype))
        return logits_BT2.double().sigmoid().unbind(-1)

    def read(self, end_BN: Tensor, sum_BRD: Tensor, bound_B2QW: Tensor, oldest: int | Tensor | None = None) -> Tensor:
        """Means of the tape between two bounds each: (B, Q, D).

        The ends are in the order of time. So are the integrals, but for those of a ring: in row `oldest` they begin.
        """
        (B, _, Q, W), bound_BP = bound_B2QW.shape, bound_B2QW.flatten(1)  # P = 2 Q W
        after_BP = torch.searchsorted(end_BN.detach(), bound_BP.detach()).clamp(1, end_BN.size(1) - 1)
        before_BP = end_BN.gather(1, after_BP - 1)
        share_BP = (bound_BP - before_BP) / (end_BN.gather(1, after_BP) - before_BP).clamp(min=TINY)
        shares = torch.stack((1 - share_BP, share_BP), -1).view(B, 2, Q, W, 2)
        weight_BQW22 = shares.permute(0, 2, 3, 1, 4) * self.sign_W22
        row_BP2 = torch.stack((after_BP - 1, after_BP), -1)
        row_BP2 = row_BP2 if oldest is None else (row_BP2 + oldest) % sum_BRD.size(1)
        # A row of the table is what one window has of a row of the integrals.
        row_BQW22 = row_BP2.view(B, 2, Q, W, 2).permute(0, 2, 3, 1, 4) * W + self.part_W11
        row_BQW22 += sum_BRD.size(1) * W * torch.arange(B, device=end_BN.device).view(-1, 1, 1, 1, 1)
        table_RV = sum_BRD.reshape(-1, self.d_model // W)
        y_PV: Tensor = _GatheredSum.apply(weight_BQW22.reshape(-1, 4), table_RV, row_BQW22.reshape(-1, 4))  # type: ignore[no-untyped-call]
        return y_PV.view(B, Q, -1)

    def flops_per_token(self) -> int:
        """The gates, and weighted sums of the four integrals around two bounds."""
        return 2 * self.gates.weight.numel() + 2 * 4 * self.d_model

    def state_bytes(self) -> int:
        """The ring, whatever the length, and how far the pointer went."""
        return 8 * ((1 + self.memory_len) * (1 + self.d_model) + 1)


def at(row: int | Tensor) -> slice | Tensor:
    """An index of one row, which may be a tensor (1,), that keeps the dimension."""
    return slice(row, row + 1) if isinstance(row, int) else row


def bounds(moved_BT: Tensor, end_BT: Tensor, oldest_BT: Tensor, length_W: Tensor) -> Tensor:
    """Where on the tape, between its oldest and its latest end, reading begins and ends: (B, 2, T, W)."""
    pointer_BT1 = torch.minimum(moved_BT, end_BT).unsqueeze(-1)
    bound_B2TW = torch.stack((pointer_BT1 - (length_W + 1) / 2, pointer_BT1 + (length_W - 1) / 2), 1)
    return bound_B2TW.clamp(oldest_BT[:, None, :, None], end_BT[:, None, :, None])


def tape_reference(x_BTD: Tensor, wrote_BT: Tensor, moves_BT: Tensor, memory_len: int) -> Tensor:
    """`Tape` by the formula, given its lengths: token by token what each has of each window."""
    y_BTD, (B, T, D) = torch.zeros_like(x_BTD), x_BTD.shape
    for b, t, feature in itertools.product(range(B), range(T), range(D)):
        length = WINDOWS[feature * len(WINDOWS) // D]
        pointer = min(moves_BT[b, : t + 1].sum(), wrote_BT[b, : t + 1].sum())
        start = torch.zeros((), dtype=wrote_BT.dtype)
        for s in range(t + 1):
            end = start + wrote_BT[b, s]
            overlap = min(end, pointer + (length - 1) / 2) - max(start, pointer - (length + 1) / 2)
            if s > t - memory_len and overlap > 0:
                y_BTD[b, t, feature] += overlap / length * x_BTD[b, s, feature]
            start = end
    return y_BTD
