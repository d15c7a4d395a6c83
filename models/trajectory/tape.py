"""Counting: tokens write learned lengths of a tape, and a pointer that moves by learned lengths reads it.

    end[t] = Σ_{s <= t} a[s]                       a = sigmoid(write · x): the tape from end[t - 1] to end[t] holds x[t]
    pointer[t] = min(Σ_{s <= t} b[s], end[t])      b = sigmoid(move · x)
    y[t] = mean of the tape from pointer[t] - (n + 1) / 2 to pointer[t] + (n - 1) / 2,  n = 1, 4, 16, 64

for a normalised input x (B, T, D). A token of length 0 is left out, and one that moves the pointer by 1 reads on: so
the n-th of what counts is found, wherever it stands. Both are learned by gradients, as the tape is read where the
pointer is, not at a place that is chosen: y is the difference of two integrals, which are cumulative sums, linear in
between. The wide windows tell the pointer where it should be before the narrow ones can. Each of four pointers, with a
tape of its own, reads its part of the width, which is divided among the windows. O(T D) work and a binary search, no
loop over time.

Continuous integrate-and-fire (Dong & Xu, arXiv 1905.11235) cuts a sequence where such a sum passes whole numbers, once
for each; here a second sum says what is read, and when.

Shapes: B batch, T time, D width, H pointers, W windows, N ends of the tape, of which the first is that before its
tokens, M positions that are remembered.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.bags import gathered_dot, gathered_sum
from models.scan import accumulation_dtype, full_precision

WINDOWS = (1, 4, 16, 64)  # lengths of tape that are read
POINTERS = 4  # each with a tape of its own: of single ones some never find their way
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
    """The tape's ends after tokens (B, H, N), its integrals up to there (B, N, D), the pointers' ways (B, H); float64.

    Streaming keeps a ring of N = M + 1: the end after n tokens in row n mod N, zeros where there were none.
    """

    ends: Tensor
    sums: Tensor
    moved: Tensor


class Tape(nn.Module):
    """Normalised (B, T, D) -> what the pointers read (B, T, D).

    Args:
        d_model: Width.
        memory_len: Positions whose tape is kept.

    Raises:
        ValueError: If pointers and windows cannot have equal parts of the width.
    """

    part_HW11: Tensor
    length_W: Tensor
    sign_W22: Tensor

    def __init__(self, d_model: int, memory_len: int) -> None:
        super().__init__()
        if d_model % (POINTERS * len(WINDOWS)):
            raise ValueError(
                f"--model.tape true divides --model.d_model {d_model} among {POINTERS} pointers of {len(WINDOWS)} "
                f"windows each; choose a multiple of {POINTERS * len(WINDOWS)}"
            )
        self.d_model, self.memory_len = d_model, memory_len
        self.gates = nn.Linear(d_model, 2 * POINTERS)
        part_HW11 = torch.arange(POINTERS * len(WINDOWS)).view(POINTERS, -1, 1, 1)
        self.register_buffer("part_HW11", part_HW11, persistent=False)
        length_W = torch.tensor(WINDOWS, dtype=torch.float64)
        self.register_buffer("length_W", length_W, persistent=False)
        sign_W22 = torch.tensor([[-1.0], [1.0]]) / length_W.view(-1, 1, 1)
        self.register_buffer("sign_W22", sign_W22, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """All tokens alike at first."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(AT_START).repeat_interleave(POINTERS))

    def init_state(self, batch_size: int, num_ends: int | None = None) -> TapeState:
        """An empty tape."""
        B, N, device = batch_size, 1 + self.memory_len if num_ends is None else num_ends, self.part_HW11.device
        shapes = (B, POINTERS, N), (B, N, self.d_model), (B, POINTERS)
        return TapeState(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Whole sequences."""
        return self.extended(x_BTD, self.init_state(len(x_BTD), num_ends=1))[0]

    def step(self, x_BD: Tensor, state: TapeState, now: int | Tensor) -> tuple[Tensor, TapeState]:
        """One position (B, D) of `forward`, before which `now` were read; the state that is given is used up."""
        ends, sums, N = state.ends, state.sums, 1 + self.memory_len
        latest, new, oldest = now % N, (now + 1) % N, (now + 2) % N
        wrote_BH, moves_BH = self.lengths(x_BD)
        moved_BH = state.moved + moves_BH
        ends[..., at(new)] = ends[..., at(latest)] + wrote_BH.unsqueeze(2)
        sums[:, at(new)] = sums[:, at(latest)] + added(x_BD, wrote_BH).unsqueeze(1)
        end_BHN = ends.roll(-oldest, 2) if isinstance(oldest, int) else ends[..., self.rows(now + 1)]
        bound_BH2QW = bounds(moved_BH.unsqueeze(2), end_BHN[..., -1:], end_BHN[..., :1], self.length_W)
        y_BQD = self.read(end_BHN, sums, bound_BH2QW, oldest)
        return y_BQD.squeeze(1).to(x_BD.dtype), state._replace(moved=moved_BH)

    def prefill(self, x_BTD: Tensor, state: TapeState, now: int) -> tuple[Tensor, TapeState]:
        """`step` for many positions (B, T, D) at once."""
        N, row_N = 1 + self.memory_len, self.rows(now)[-1 - now :]
        y_BTD, (ends, sums, moved_BH) = self.extended(
            x_BTD, TapeState(state.ends[..., row_N], state.sums[:, row_N], state.moved)
        )
        kept_N = self.rows(now + x_BTD.size(1))[-sums.size(1) :]
        state.ends[..., kept_N], state.sums[:, kept_N] = ends[..., -N:], sums[:, -N:]
        return y_BTD, state._replace(moved=moved_BH)

    def rows(self, num_tokens: int | Tensor) -> Tensor:
        """Rows of a ring after so many tokens, the latest last: (N,)."""
        N = 1 + self.memory_len
        return (num_tokens + 1 + torch.arange(N, device=self.part_HW11.device)) % N

    def extended(self, x_BTD: Tensor, tape: TapeState) -> tuple[Tensor, TapeState]:
        """What is read at positions that write on, and the longer tape."""
        num_before, T = tape.sums.size(1), x_BTD.size(1)
        wrote_BTH, moves_BTH = self.lengths(x_BTD)
        end_BHN = torch.cat((tape.ends, tape.ends[..., -1:] + wrote_BTH.transpose(1, 2).cumsum(2)), 2)
        sum_BND = torch.cat((tape.sums, tape.sums[:, -1:] + added(x_BTD, wrote_BTH).cumsum(1)), 1)
        moved_BHT = tape.moved.unsqueeze(2) + moves_BTH.transpose(1, 2).cumsum(2)
        oldest_T = (torch.arange(T, device=x_BTD.device) + num_before - self.memory_len).clamp(min=0)
        bound_BH2TW = bounds(moved_BHT, end_BHN[..., num_before:], end_BHN[..., oldest_T], self.length_W)
        y_BTD = self.read(end_BHN, sum_BND, bound_BH2TW)
        return y_BTD.to(x_BTD.dtype), TapeState(end_BHN, sum_BND, moved_BHT[..., -1])

    def lengths(self, x: Tensor) -> list[Tensor]:
        """How much tape a token writes, and how far the pointer moves: (..., D) -> twice (..., H)."""
        with full_precision(x):
            gates, dtype = self.gates, accumulation_dtype(x.dtype)
            logits = F.linear(x.to(dtype), gates.weight.to(dtype), gates.bias.to(dtype))
        return list(logits.double().sigmoid().chunk(2, -1))

    def read(self, end_BHN: Tensor, sum_BRD: Tensor, bound_BH2QW: Tensor, oldest: int | Tensor | None = None) -> Tensor:
        """Means of the tape between two bounds each: (B, Q, D).

        The ends are in the order of time. So are the integrals, but for those of a ring: in row `oldest` they begin.
        """
        (B, H, _, Q, W), bound_BHP = bound_BH2QW.shape, bound_BH2QW.flatten(2)  # P = 2 Q W
        after_BHP = torch.searchsorted(end_BHN.detach(), bound_BHP.detach()).clamp(1, end_BHN.size(2) - 1)
        before = end_BHN.gather(2, after_BHP - 1)
        share_BHP = (bound_BHP - before) / (end_BHN.gather(2, after_BHP) - before).clamp(min=TINY)
        shares = torch.stack((1 - share_BHP, share_BHP), -1).view(B, H, 2, Q, W, 2)
        weight_BQHW22 = shares.permute(0, 3, 1, 4, 2, 5) * self.sign_W22
        row_BHP2 = torch.stack((after_BHP - 1, after_BHP), -1)
        row_BHP2 = row_BHP2 if oldest is None else (row_BHP2 + oldest) % sum_BRD.size(1)
        # A row of the table is what one pointer's window has of a row of the integrals.
        row_BQHW22 = row_BHP2.view(B, H, 2, Q, W, 2).permute(0, 3, 1, 4, 2, 5) * (H * W) + self.part_HW11
        row_BQHW22 += sum_BRD.size(1) * H * W * torch.arange(B, device=end_BHN.device).view(-1, 1, 1, 1, 1, 1)
        table_RV = sum_BRD.reshape(-1, self.d_model // (H * W))
        y_PV: Tensor = _GatheredSum.apply(weight_BQHW22.reshape(-1, 4), table_RV, row_BQHW22.reshape(-1, 4))  # type: ignore[no-untyped-call]
        return y_PV.view(B, Q, -1)

    def flops_per_token(self) -> int:
        """The gates, and weighted sums of the four integrals around two bounds."""
        return 2 * self.gates.weight.numel() + 2 * 4 * self.d_model

    def state_bytes(self) -> int:
        """The ring, whatever the length, and how far the pointers went."""
        return 8 * ((1 + self.memory_len) * (POINTERS + self.d_model) + POINTERS)


def at(row: int | Tensor) -> slice | Tensor:
    """An index of one row, which may be a tensor (1,), that keeps the dimension."""
    return slice(row, row + 1) if isinstance(row, int) else row


def added(x: Tensor, wrote: Tensor) -> Tensor:
    """What a token adds to the integrals: (..., D), lengths (..., H) -> (..., D)."""
    x_HV: Tensor = x.unflatten(-1, (wrote.size(-1), -1))
    return (x_HV * wrote.unsqueeze(-1)).flatten(-2)


def bounds(moved_BHT: Tensor, end_BHT: Tensor, oldest_BHT: Tensor, length_W: Tensor) -> Tensor:
    """Where on the tape, between its oldest and its latest end, reading begins and ends: (B, H, 2, T, W)."""
    pointer_BHT1 = torch.minimum(moved_BHT, end_BHT).unsqueeze(-1)
    bound_BH2TW = torch.stack((pointer_BHT1 - (length_W + 1) / 2, pointer_BHT1 + (length_W - 1) / 2), 2)
    return bound_BH2TW.clamp(oldest_BHT[:, :, None, :, None], end_BHT[:, :, None, :, None])


def tape_reference(x_BTD: Tensor, wrote_BTH: Tensor, moves_BTH: Tensor, memory_len: int) -> Tensor:
    """`Tape` by the formula, given its lengths: token by token what each has of each window."""
    y_BTD, (B, T, D), H = torch.zeros_like(x_BTD), x_BTD.shape, wrote_BTH.size(-1)
    for b, t, feature in itertools.product(range(B), range(T), range(D)):
        h, within = divmod(feature, D // H)
        length = WINDOWS[within * len(WINDOWS) // (D // H)]
        pointer = min(moves_BTH[b, : t + 1, h].sum(), wrote_BTH[b, : t + 1, h].sum())
        start = torch.zeros((), dtype=wrote_BTH.dtype)
        for s in range(t + 1):
            end = start + wrote_BTH[b, s, h]
            overlap = min(end, pointer + (length - 1) / 2) - max(start, pointer - (length + 1) / 2)
            if s > t - memory_len and overlap > 0:
                y_BTD[b, t, feature] += overlap / length * x_BTD[b, s, feature]
            start = end
    return y_BTD
