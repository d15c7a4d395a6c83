"""The loop over time of the sparse recurrent net: one step, all steps, and back-propagation through time by hand.

A stimulus X and an inhibition B of m levels each: args = the top k of X - B; X <- norm(X + g(X[args], B[args]) M[args]
+ u_t), B <- B + f(X[args], B[args]) at args, u_t being the drive. The loop is a few operations a step; what does not
depend on the state (the derivatives of g and f, the gradients of M, g and f) is computed for all steps at once.

Shapes: B batch, T time, M levels (m), K attended levels (k), H hidden units of g and f, N = T B bags of K rows.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = tuple[Tensor, Tensor, Tensor]  # the network of g and f: U (H, 2), c (H, 1), V (2, H)


class Attend(torch.autograd.Function):
    """Copies of the selected coordinates, whose gradients are added into exactly those coordinates."""

    @staticmethod
    def forward(ctx: Any, x_BM: Tensor, args_BK: Tensor) -> Tensor:
        """(B, M) and indices (B, K) -> (B, K)."""
        ctx.save_for_backward(args_BK)
        ctx.shape = x_BM.shape
        copies_BK: Tensor = x_BM.gather(1, args_BK)
        return copies_BK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """(B, K) -> (B, M), zero but at the indices; an index that comes twice receives both."""
        return gradients[0].new_zeros(ctx.shape).scatter_add_(1, ctx.saved_tensors[0], gradients[0]), None


def attend(x_BM: Tensor, args_BK: Tensor) -> Tensor:
    """Coordinates `args` of each row: (B, M), int64 (B, K) -> (B, K); indices may repeat."""
    if not (x_BM.requires_grad and torch.is_grad_enabled()):
        return x_BM.gather(1, args_BK)
    return cast(Tensor, Attend.apply(x_BM, args_BK))  # type: ignore[no-untyped-call]


def gains(x: Tensor, b: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Weights g = x + net_1 and changes f = net_2 - b / 2 of attended levels, all (..., K); net = V tanh(U [x; b] + c).

    A level that is attended to has its inhibition halved and a bounded amount added, so that it cannot run away.
    """
    inward, bias, outward = rule
    hidden = torch.addmm(bias, inward, torch.stack((x, b)).flatten(1)).tanh_()
    net_g, net_f = (outward @ hidden).view(2, *x.shape).unbind()
    return x + net_g, torch.add(net_f, b, alpha=-0.5)


def weighted_rows(rows_MM: Tensor, args_BK: Tensor, g_BK: Tensor) -> Tensor:
    """Sums of rows times weights, fused: (M, M), (B, K), (B, K) -> (B, M); `F.embedding_bag` with less around it."""
    offsets_B = torch.arange(0, args_BK.numel(), args_BK.size(1), device=args_BK.device)
    bags = torch.embedding_bag(rows_MM, args_BK.flatten(), offsets_B, False, 0, False, g_BK.flatten(), False)
    return bags[0]


def sparse_step(
    x_BM: Tensor, b_BM: Tensor, drive_BM: Tensor, rows_MM: Tensor, rule: Rule | None, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step -> next stimulus before the norm, next inhibition, args (B, K), and weights g (B, K) of the rows."""
    args_BK = (x_BM if rule is None else x_BM - b_BM).topk(k, sorted=False).indices
    g_BK = attend(x_BM, args_BK)
    if rule is not None:
        g_BK, f_BK = gains(g_BK, attend(b_BM, args_BK), rule)
        b_BM = b_BM.scatter_add(1, args_BK, f_BK)
    return x_BM + drive_BM + weighted_rows(rows_MM, args_BK, g_BK), b_BM, args_BK, g_BK


def rms_scale(x: Tensor) -> Tensor:
    """1 / root mean square of (B, M) -> (B, 1); the state never vanishes, as it starts at 1 and is kept there."""
    scale: Tensor = x.size(-1) ** 0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return scale


def norm_backward(grad: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x from that of y = s x, s = rms_scale(x): s (grad - y mean(grad y))."""
    inner = torch.linalg.vecdot(grad, normed).unsqueeze(-1) / -normed.size(-1)
    return torch.addcmul(grad, normed, inner).mul_(scale)


class SparseScan(torch.autograd.Function):
    """All steps of the sparse net, and back-propagation through time by hand."""

    @staticmethod
    def forward(
        ctx: Any, drive_TBM: Tensor, x_BM: Tensor, rows_MM: Tensor, k: int, window: int, *rule: Tensor
    ) -> Tensor:
        """Drives (T, B, M) and the first stimulus -> stimuli (T, B, M); see `sparse_scan_reference`."""
        states, scales, inhibitions, args, weights = [x_BM], [], [torch.zeros_like(x_BM)], [], []
        for drive_BM in drive_TBM.unbind(0):
            pre_BM, b_BM, args_BK, g_BK = sparse_step(
                states[-1], inhibitions[-1], drive_BM, rows_MM, cast(Rule, rule) if rule else None, k
            )
            scales.append(rms_scale(pre_BM))
            states.append(pre_BM.mul_(scales[-1]))
            args.append(args_BK)
            weights.append(g_BK)
            inhibitions.append(b_BM)
        args_TBK, states_TBM = torch.stack(args), torch.stack(states)
        attended_TBK = states_TBM[:-1].gather(2, args_TBK)
        inhibited_TBK = torch.stack([b.gather(1, i) for b, i in zip(inhibitions, args, strict=False)])
        ctx.save_for_backward(
            states_TBM, torch.stack(scales), args_TBK, torch.stack(weights), attended_TBK, inhibited_TBK, rows_MM, *rule
        )
        ctx.window = window
        return states_TBM[1:].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of drives, first stimulus, rows and rule; none crosses the border of a window."""
        states, scales, args, weights, attended, inhibited, rows_MM, *rule = ctx.saved_tensors
        slopes, leaves, outputs = _slopes(attended, inhibited, rule)
        dpre_TBM = torch.empty_like(gradients[0])
        dg_TBK, df_TBK = torch.empty_like(attended), torch.zeros_like(attended)
        dx_BM, db_BM = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        for t in range(len(args) - 1, -1, -1):
            dpre_BM = torch.mul(
                norm_backward(dx_BM.add_(gradients[0][t]), states[t + 1], scales[t]), 1, out=dpre_TBM[t]
            )
            torch.linalg.vecdot(F.embedding(args[t], rows_MM), dpre_BM.unsqueeze(1), out=dg_TBK[t])
            if rule:
                torch.gather(db_BM, 1, args[t], out=df_TBK[t])
                db_BM.scatter_add_(1, args[t], dg_TBK[t] * slopes[1][t] + df_TBK[t] * slopes[3][t])
            dx_BM = dpre_BM.scatter_add(1, args[t], dg_TBK[t] * slopes[0][t] + df_TBK[t] * slopes[2][t])
            if ctx.window and t and t % ctx.window == 0:
                dx_BM.zero_()
                db_BM.zero_()
        drule = torch.autograd.grad(outputs, leaves, (dg_TBK, df_TBK)) if rule else ()
        return dpre_TBM, dx_BM, rows_gradient(args, weights, dpre_TBM, rows_MM), None, None, *drule


def _slopes(
    attended: Tensor, inhibited: Tensor, rule: list[Tensor]
) -> tuple[tuple[Tensor, ...], list[Tensor], tuple[Tensor, ...]]:
    """Derivatives dg/dx, dg/db, df/dx, df/db at every step; the rule as leaves, and g and f as functions of them."""
    if not rule:
        one, zero = torch.ones_like(attended), torch.zeros_like(attended)
        return (one, zero, zero, zero), [], ()
    with torch.enable_grad():
        x, b = attended.detach().requires_grad_(), inhibited.detach().requires_grad_()
        leaves = [weight.detach().requires_grad_() for weight in rule]
        g, f = gains(x, b, cast(Rule, tuple(leaves)))
        of_g = torch.autograd.grad(g.sum(), (x, b), retain_graph=True)
        of_f = torch.autograd.grad(f.sum(), (x, b), retain_graph=True)
    return (*of_g, *of_f), leaves, (g, f)


def rows_gradient(args_TBK: Tensor, weights_TBK: Tensor, dpre_TBM: Tensor, rows_MM: Tensor) -> Tensor:
    """Sum of weight * dpre over the steps that attended a row: a sparse (M, N) times a dense (N, M), K N M products."""
    bags = torch.arange(args_TBK[..., 0].numel(), device=args_TBK.device).repeat_interleave(args_TBK.size(-1))
    shape = (rows_MM.size(0), args_TBK[..., 0].numel())
    where = torch.stack((args_TBK.flatten(), bags))
    return torch.sparse_coo_tensor(where, weights_TBK.flatten(), shape, check_invariants=False) @ dpre_TBM.flatten(0, 1)


class DenseScan(torch.autograd.Function):
    """All steps of the dense net X <- norm(X + X M + W u_t), the comparison, in the same manner."""

    @staticmethod
    def forward(ctx: Any, drive_TBM: Tensor, x_BM: Tensor, rows_MM: Tensor, window: int) -> Tensor:
        """Drives (T, B, M) and the first stimulus -> stimuli (T, B, M)."""
        states, scales = [x_BM], []
        for drive_BM in drive_TBM.unbind(0):
            pre_BM = torch.addmm(drive_BM, states[-1], rows_MM).add_(states[-1])
            scales.append(rms_scale(pre_BM))
            states.append(pre_BM.mul_(scales[-1]))
        states_TBM = torch.stack(states)
        ctx.save_for_backward(states_TBM, torch.stack(scales), rows_MM)
        ctx.window = window
        return states_TBM[1:].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of drives, first stimulus and rows; none crosses the border of a window."""
        states, scales, rows_MM = ctx.saved_tensors
        dpre_TBM = torch.empty_like(gradients[0])
        dx_BM = torch.zeros_like(states[0])
        for t in range(len(scales) - 1, -1, -1):
            dpre_BM = torch.mul(
                norm_backward(dx_BM.add_(gradients[0][t]), states[t + 1], scales[t]), 1, out=dpre_TBM[t]
            )
            dx_BM = torch.addmm(dpre_BM, dpre_BM, rows_MM.T)
            if ctx.window and t and t % ctx.window == 0:
                dx_BM.zero_()
        return dpre_TBM, dx_BM, states[:-1].flatten(0, 1).T @ dpre_TBM.flatten(0, 1), None
