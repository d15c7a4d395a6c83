"""The loop over time of the sparse recurrent net: one step, all steps, and back-propagation through time by hand.

A stimulus X and an inhibition B of m levels each: args = the top k of X - B; X <- norm(X + g(X[args], B[args]) M[args]
+ u_t), B <- B + f(X[args], B[args]) at args, u_t being the drive. In the ranked form M has k rows, not m, and is read
whole, X <- norm(X + g(X[args], B[args]) M + u_t): its row i belongs to the level that is i-th of the top k, whichever
that is. The loop is a few operations a step; what does not depend on the state (the derivatives of g and f, the
gradients of M, g and f) is computed for all steps at once.

Shapes: B batch, T time, M levels (m), K attended levels (k), R rows of the matrix, m or, ranked, k; H hidden units of g
and f, N = T B bags of K rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.bags import bag_numbers, bag_offsets, gathered_dot, gathered_sum

LINEAR = ((1.0, 0.0), (0.0, -0.5))  # the part of `gains` that is not learned: of x and b in g, of x and b in f
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


class Choice(NamedTuple):
    """What a step attends to: args (B, K), their stimulus and inhibition before it, and the weights of the rows."""

    args: Tensor
    x: Tensor
    b: Tensor
    weights: Tensor


def sparse_step(
    x_BM: Tensor,
    b_BM: Tensor,
    drive_BM: Tensor,
    rows_RM: Tensor,
    rule: Rule | None,
    k: int,
    ranked: bool,
    offsets_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Choice]:
    """One step -> next stimulus before the norm, next inhibition, and what was attended to.

    `ranked` says that the rows are k and belong to ranks, the highest level's first; else each level has its own.
    """
    args_BK = (x_BM if rule is None else x_BM - b_BM).topk(k, sorted=ranked).indices
    g_BK = b_BK = x_BK = attend(x_BM, args_BK)
    if rule is not None:
        b_BK = attend(b_BM, args_BK)
        g_BK, f_BK = gains(x_BK, b_BK, rule)
        b_BM = b_BM.scatter_add(1, args_BK, f_BK)
    read_BM = g_BK @ rows_RM if ranked else gathered_sum(g_BK, rows_RM, args_BK, offsets_B)
    return read_BM + (x_BM + drive_BM), b_BM, Choice(args_BK, x_BK, b_BK, g_BK)


def rms_scale(x: Tensor) -> Tensor:
    """1 / root mean square of (B, M) -> (B, 1); the state never vanishes, as it starts at 1 and is kept there."""
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).reciprocal_().mul_(x.size(-1) ** 0.5)
    return scale


def norm_backward(grad: Tensor, normed: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """Gradient of x from that of y = s x, s = rms_scale(x), written to `out`: s (grad - y mean(grad y))."""
    inner = torch.linalg.vecdot(grad, normed).unsqueeze(-1) / -normed.size(-1)
    return torch.mul(torch.addcmul(grad, normed, inner), scale, out=out)


class SparseScan(torch.autograd.Function):
    """All steps of the sparse net, and back-propagation through time by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        drive_TBM: Tensor,
        x_BM: Tensor,
        b_BM: Tensor,
        rows_RM: Tensor,
        k: int,
        ranked: bool,
        window: int,
        *rule: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Drives (T, B, M) and the stimulus and inhibition before -> stimuli (T, B, M) and the last inhibition."""
        states_TBM, scales, choices = torch.empty_like(drive_TBM), [], []
        network = cast(Rule, rule) if rule else None
        offsets_B = torch.arange(0, x_BM.size(0) * k, k, device=x_BM.device)
        for drive_BM, state_BM in zip(drive_TBM.unbind(0), states_TBM.unbind(0), strict=True):
            pre_BM, b_BM, chosen = sparse_step(x_BM, b_BM, drive_BM, rows_RM, network, k, ranked, offsets_B)
            scales.append(rms_scale(pre_BM))
            choices.append(chosen)
            x_BM = torch.mul(pre_BM, scales[-1], out=state_BM)
        chosen_TBK = (torch.stack(column) for column in zip(*choices, strict=True))
        ctx.save_for_backward(states_TBM, torch.stack(scales), *chosen_TBK, rows_RM, *rule)
        ctx.ranked, ctx.window = ranked, window
        return states_TBM, b_BM.clone()  # a function must not return its input, which nothing has inhibited

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of drives, first stimulus and inhibition, rows and rule; none crosses the border of a window."""
        states, scales, args, x_TBK, b_TBK, weights, rows_RM, *rule = ctx.saved_tensors
        network = Network(x_TBK, b_TBK, cast(Rule, tuple(rule))) if rule else None
        dpre_TBM, dg_TBK, df_TBK = torch.empty_like(states), torch.empty_like(x_TBK), torch.empty_like(x_TBK)
        dx_BM, db_BM = torch.zeros_like(states[0]), gradients[1].clone()
        offsets_B = bag_offsets(args[0])
        bags_N = bag_numbers(args[0])
        for t in range(len(args) - 1, -1, -1):
            dpre_BM = norm_backward(dx_BM.add_(gradients[0][t]), states[t], scales[t], dpre_TBM[t])
            if ctx.ranked:
                of_x_BK = torch.mm(dpre_BM, rows_RM.T, out=dg_TBK[t])
            else:
                dg_TBK[t] = of_x_BK = gathered_dot(dpre_BM, rows_RM, args[t], offsets_B, bags_N)
            if network is not None:
                torch.gather(db_BM, 1, args[t], out=df_TBK[t])
                of_x_BK, of_b_BK = (network.slopes[t, :, 0] * dg_TBK[t]).addcmul_(network.slopes[t, :, 1], df_TBK[t])
                db_BM.scatter_add_(1, args[t], of_b_BK)
            dx_BM = dpre_BM.scatter_add(1, args[t], of_x_BK)
            if ctx.window and t and t % ctx.window == 0:
                dx_BM.zero_()
                db_BM.zero_()
        drule = network.gradients(dg_TBK, df_TBK) if network is not None else ()
        if ctx.ranked:
            drows_RM = weights.flatten(0, 1).T @ dpre_TBM.flatten(0, 1)
        else:
            drows_RM = rows_gradient(args, weights, dpre_TBM, rows_RM)
        return dpre_TBM, dx_BM, db_BM, drows_RM, None, None, None, *drule


class Network:
    """Derivatives of `gains` at all steps, in closed form and a few products.

    slopes: (T, 2, 2, B, K), first of x and b, then in g and f.
    """

    def __init__(self, x_TBK: Tensor, b_TBK: Tensor, rule: Rule) -> None:
        inward, bias, self.outward = rule
        self.pair = torch.stack((x_TBK, b_TBK)).flatten(1)
        self.hidden = torch.addmm(bias, inward, self.pair).tanh_()
        self.bend = 1 - self.hidden.square()
        # Filled where it is: a GPU that is sent numbers is waited for.
        linear = torch.cat([self.pair.new_full((1, 1), of_output[i]) for i in range(2) for of_output in LINEAR])
        paths = (inward.T.unsqueeze(1) * self.outward.unsqueeze(0)).flatten(0, 1)  # (4, H)
        self.slopes = torch.addmm(linear, paths, self.bend).view(2, 2, *x_TBK.shape).movedim(2, 0).contiguous()

    def gradients(self, dg_TBK: Tensor, df_TBK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of U, c and V from those of g and f."""
        grad = torch.stack((dg_TBK, df_TBK)).flatten(1)
        inner = (self.outward.T @ grad).mul_(self.bend)
        return inner @ self.pair.T, inner.sum(1, keepdim=True), grad @ self.hidden.T


def rows_gradient(args_TBK: Tensor, weights_TBK: Tensor, dpre_TBM: Tensor, rows_MM: Tensor) -> Tensor:
    """Sum of weight * dpre over the steps that attended a row: K N M multiply-adds, a bag of gradients for each row."""
    args, k = args_TBK.flatten(), args_TBK.size(-1)
    row_S, order = args.sort(stable=True)
    starts = torch.searchsorted(row_S, torch.arange(rows_MM.size(0), device=args.device))
    steps, weights = order.div(k, rounding_mode="floor"), weights_TBK.flatten()[order]
    return torch.embedding_bag(dpre_TBM.flatten(0, 1), steps, starts, per_sample_weights=weights)[0]


class DenseScan(torch.autograd.Function):
    """All steps of the dense net X <- norm(X + X M + W u_t), the comparison, in the same manner."""

    @staticmethod
    def forward(ctx: Any, drive_TBM: Tensor, x_BM: Tensor, rows_MM: Tensor, window: int) -> Tensor:
        """Drives (T, B, M) and the first stimulus -> stimuli (T, B, M)."""
        states_TBM, scales, first_BM = torch.empty_like(drive_TBM), [], x_BM
        for drive_BM, state_BM in zip(drive_TBM.unbind(0), states_TBM.unbind(0), strict=True):
            pre_BM = torch.addmm(drive_BM, x_BM, rows_MM).add_(x_BM)
            scales.append(rms_scale(pre_BM))
            x_BM = torch.mul(pre_BM, scales[-1], out=state_BM)
        ctx.save_for_backward(states_TBM, torch.stack(scales), first_BM, rows_MM)
        ctx.window = window
        return states_TBM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of drives, first stimulus and rows; none crosses the border of a window."""
        states, scales, first_BM, rows_MM = ctx.saved_tensors
        dpre_TBM, dx_BM = torch.empty_like(states), torch.zeros_like(states[0])
        for t in range(len(scales) - 1, -1, -1):
            dpre_BM = norm_backward(dx_BM.add_(gradients[0][t]), states[t], scales[t], dpre_TBM[t])
            dx_BM = torch.addmm(dpre_BM, dpre_BM, rows_MM.T)
            if ctx.window and t and t % ctx.window == 0:
                dx_BM.zero_()
        drows_MM = torch.addmm(first_BM.T @ dpre_TBM[0], states[:-1].flatten(0, 1).T, dpre_TBM[1:].flatten(0, 1))
        return dpre_TBM, dx_BM, drows_MM, None
