"""SparseRNN: a recurrent net that attends over its own state, k of m levels a step.

args = the top k of X - B, stimulus less inhibition; X <- norm(X + g(X[args], B[args]) M[args] + W u_t), B <- B +
f(X[args], B[args]) at args. Only k rows of M are touched, so a token costs O(k m) beside its way in and out; g and f
are one small network, the same for all levels, and norm is the RMS norm, which bounds X. The loop over time is
inherent, as what is attended to depends on the state: `models.sparse_rnn.scan` makes it as short as it can be. The
drive W u_t may be mixed over a few positions before.

The variant `literal` takes X + X[args] M at its word: M has k rows, which makes a matrix of k m numbers, not only as
many products. Row i belongs to the level that ranks i-th by X - B, whichever that is, so that what is added depends on
how high the attended levels are, and on which they are only through the state that it is added to.

Shapes: B batch, T time, D width, M levels (m), K attended levels (k), R rows of the matrix, m or, in `literal`, k.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from models.growth import GrowableModel
from models.layers import (
    Mixer,
    Norm,
    check_choice,
    check_positive,
    init_input,
    init_output,
    kept,
    norm_named,
    relu_squared,
    rms_norm,
)
from models.local_mixing import LocalMixing, LocalMixingKind
from models.scan import accumulation_dtype, full_precision
from models.sparse_rnn.scan import DenseScan, Rule, SparseScan, gains, rms_scale, sparse_step

Variant = Literal["inhibited", "plain", "literal", "dense"]
State = tuple[Tensor, Tensor]  # stimulus (B, M) and inhibition, (B, M) or (B, 0)
BlockState = tuple[State, Tensor]
RULE_WIDTH = 8  # hidden units of the network of g and f


class SparseRecurrence(nn.Module):
    """(B, T, M) -> (B, T, M): drives to stimuli, by one of the four nets.

    Args:
        state_width: Levels, m.
        k: Levels attended to in a step.
        variant: With inhibition, a row of M for each level; plain, X + X[args] M[args], without; literal, with
            inhibition, a row of M for each of k ranks; or dense, X + X M, the comparison.
        bptt_window: Steps after which gradients are cut while the state goes on; None for all.
    """

    def __init__(
        self, state_width: int, k: int, variant: Variant = "inhibited", bptt_window: int | None = None
    ) -> None:
        super().__init__()
        check_choice("--model.variant", variant, Variant)
        check_positive(state_width=state_width, k=k)
        if k > state_width:
            raise ValueError(f"--model.k {k} is more than the --model.state_width {state_width} levels there are")
        if bptt_window is not None and bptt_window < 1:
            raise ValueError(f"--model.bptt_window is {bptt_window}; it must be at least 1, or null for no window")
        self.state_width, self.k, self.variant, self.bptt_window = state_width, k, variant, bptt_window
        self.ranked, self.inhibits = variant == "literal", variant in ("inhibited", "literal")
        self.rows = nn.Parameter(torch.empty(k if self.ranked else state_width, state_width))
        self.start = nn.Parameter(torch.empty(state_width))
        if self.inhibits:
            self.rule_in = nn.Parameter(torch.empty(RULE_WIDTH, 2))
            self.rule_bias = nn.Parameter(torch.empty(RULE_WIDTH, 1))
            self.rule_out = nn.Parameter(torch.empty(2, RULE_WIDTH))
        self.init_weights()

    def init_weights(self) -> None:
        """Rows N(0, 1 / (4 terms)), terms k or m; start N(0, 1); rule_in N(0, 1/2), rule_out N(0, 1/200), bias zero.

        The rule starts close to g = x, f = -b / 2: with a loud one some seeds of Muon never leave 3.4 bits a character.
        """
        terms = self.state_width if self.variant == "dense" else self.k
        nn.init.normal_(self.rows, std=0.5 * terms**-0.5)
        nn.init.normal_(self.start)
        if self.inhibits:
            nn.init.normal_(self.rule_in, std=0.5**0.5)
            nn.init.zeros_(self.rule_bias)
            nn.init.normal_(self.rule_out, std=0.1 * 0.5**0.5)

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Rule | None]:
        """The rows, and the network of g and f if there is inhibition, in the type the state is kept in."""
        rows: Tensor = self.rows
        rule: Rule | None = None
        if self.inhibits:
            rule = self.rule_in, self.rule_bias, self.rule_out
        if rows.dtype != dtype:
            rows, rule = rows.to(dtype), rule and (rule[0].to(dtype), rule[1].to(dtype), rule[2].to(dtype))
        return rows, rule

    def forward(self, drive_BTM: Tensor) -> Tensor:
        """(B, T, M) -> (B, T, M), in float32 at least."""
        y_BTM: Tensor = self.read(drive_BTM, self.init_state(drive_BTM.size(0)))[0]
        return y_BTM

    @torch.compiler.disable  # type: ignore[untyped-decorator] # a loop over time, which a compiler would unroll
    def read(self, drive_BTM: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, T, M) -> (B, T, M) from any state on, in float32 at least, and the next state."""
        dtype, window, (x_BM, b_BM) = accumulation_dtype(drive_BTM.dtype), self.bptt_window or 0, state
        with full_precision(drive_BTM):
            drive_TBM, (rows_RM, rule) = drive_BTM.to(dtype).transpose(0, 1).contiguous(), self.weights(dtype)
            if self.variant == "dense":
                y_TBM = DenseScan.apply(drive_TBM, x_BM, rows_RM, window)  # type: ignore[no-untyped-call]
            else:
                y_TBM, b_BM = SparseScan.apply(  # type: ignore[no-untyped-call]
                    drive_TBM, x_BM, b_BM, rows_RM, self.k, self.ranked, window, *(rule or ())
                )
        return y_TBM.transpose(0, 1), (kept(y_TBM[-1]), b_BM)

    def init_state(self, batch_size: int) -> State:
        """The learned first stimulus, no inhibition."""
        x_BM = rms_norm(self.start.to(accumulation_dtype(self.start.dtype))).expand(batch_size, -1)
        return x_BM, torch.zeros_like(x_BM if self.inhibits else x_BM[:, :0])

    def step(self, drive_BM: Tensor, state: State) -> State:
        """One step of `forward`; the stimulus is the output."""
        x_BM, b_BM = state
        with full_precision(drive_BM):
            drive_BM, (rows_RM, rule) = drive_BM.to(x_BM.dtype), self.weights(x_BM.dtype)
            if self.variant == "dense":
                pre_BM = torch.addmm(drive_BM, x_BM, rows_RM) + x_BM
            else:
                pre_BM, b_BM, _ = sparse_step(x_BM, b_BM, drive_BM, rows_RM, rule, self.k, self.ranked)
            return pre_BM * rms_scale(pre_BM), b_BM

    def flops_per_token(self) -> int:
        """The rows that are touched, all of them in the dense net, and the network of g and f."""
        rows = self.state_width if self.variant == "dense" else self.k
        network = 4 * RULE_WIDTH * self.k if self.inhibits else 0
        return 2 * (rows * self.state_width + network)


def scan_reference(layer: SparseRecurrence, drive_BTM: Tensor) -> Tensor:
    """`layer(drive)` step by step, by the formulas and autograd."""
    x_BM, b_BM = rms_norm(layer.start).expand_as(drive_BTM[:, 0]), torch.zeros_like(drive_BTM[:, 0])
    states = []
    for t, drive_BM in enumerate(drive_BTM.unbind(1)):
        if layer.bptt_window and t and t % layer.bptt_window == 0:
            x_BM, b_BM = x_BM.detach(), b_BM.detach()
        if layer.variant == "dense":
            read_BM = x_BM @ layer.rows
        else:
            args_BK = (x_BM - b_BM).argsort(descending=True)[:, : layer.k]
            g_BK, f_BK = x_BM.gather(1, args_BK), torch.zeros_like(args_BK, dtype=x_BM.dtype)
            if layer.inhibits:
                g_BK, f_BK = gains(g_BK, b_BM.gather(1, args_BK), cast(Rule, layer.weights(x_BM.dtype)[1]))
            rows = layer.rows if layer.ranked else layer.rows[args_BK]  # (K, M), of ranks, or (B, K, M), of levels
            read_BM = (g_BK.unsqueeze(-1) * rows).sum(1)
            b_BM = b_BM.scatter_add(1, args_BK, f_BK)
        x_BM = rms_norm(x_BM + read_BM + drive_BM)
        states.append(x_BM)
    return torch.stack(states, 1)


class Block(Mixer):
    """(B, T, D) -> (B, T, D): the recurrent net and a feed-forward network, each added to its input.

    Args:
        d_model: Width.
        recurrence: The recurrent net.
        local_mixing: How drives see positions just before.
        ffn_width: Hidden width of the feed-forward network.
        norm: Norm, without parameters, of what each part reads; levels have the RMS norm always.
        num_layers: Blocks in the model, whose outputs add up.
    """

    outputs = ("out.weight", "down.weight")

    def __init__(
        self,
        d_model: int,
        recurrence: SparseRecurrence,
        local_mixing: LocalMixingKind,
        ffn_width: int,
        norm: Norm,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.norm = norm_named(norm)
        self.num_layers, self.recurrence = num_layers, recurrence
        self.drive = nn.Linear(d_model, recurrence.state_width, bias=False)
        self.local_mixing = LocalMixing(recurrence.state_width, local_mixing)
        self.out = nn.Linear(recurrence.state_width, d_model, bias=False)
        self.up = nn.Linear(d_model, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, d_model, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Drive and up: U(-1/sqrt D, 1/sqrt D); out and down, small at first: N(0, 1 / (4 fan_in num_layers))."""
        for linear in (self.drive, self.up):
            init_input(linear.weight)
        for linear in (self.out, self.down):
            init_output(linear.weight, self.num_layers)

    def add_branches(self, x: Tensor, stimulus: Tensor) -> Tensor:
        """Read the stimulus out into x, then add the squared-ReLU network, all (..., D)."""
        x = x + self.out(stimulus.to(x.dtype))
        y: Tensor = x + self.down(relu_squared(self.up(self.norm(x))))
        return y

    def read(self, x_BTD: Tensor, state: BlockState | None) -> tuple[Tensor, Any]:
        """(B, T, D) -> (B, T, D) after what the state has seen, and the next state."""
        levels, recent = state or (self.recurrence.init_state(x_BTD.size(0)), None)
        drive_BTM, recent = self.local_mixing.read(self.drive(self.norm(x_BTD)), recent)
        stimulus_BTM, levels = self.recurrence.read(drive_BTM, levels)
        return self.add_branches(x_BTD, stimulus_BTM), (levels, recent)

    def init_state(self, batch_size: int) -> BlockState:
        """The recurrent net's, and the local mixing's."""
        return self.recurrence.init_state(batch_size), self.local_mixing.init_state(batch_size)

    def step(self, x_BD: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One position (B, D) of `forward`."""
        levels, recent = state
        drive_BM, recent = self.local_mixing.step(self.drive(self.norm(x_BD)), recent)
        levels = self.recurrence.step(drive_BM, levels)
        return self.add_branches(x_BD, levels[0]), (levels, recent)

    def flops_per_token(self, seq_len: int) -> int:
        """The four matrices, the recurrent net's, and the local mixing."""
        linears = (self.drive, self.out, self.up, self.down)
        weights = sum(linear.weight.numel() for linear in linears)
        return 2 * weights + self.recurrence.flops_per_token() + self.local_mixing.flops_per_token()

    def state_bytes(self, seq_len: int) -> int:
        """The stimulus, the inhibition if there is one, and the local mixing's."""
        levels = self.recurrence.state_width * (2 if self.recurrence.inhibits else 1)
        return levels * accumulation_dtype(self.recurrence.rows.dtype).itemsize + self.local_mixing.state_bytes()


class SparseRNN(GrowableModel):
    """Recurrent net that reads k rows of its recurrent matrix a step; constant state, trained by a loop over time.

    Args:
        vocab_size: Number of tokens; the data gives it.
        d_model: Width.
        num_layers: Blocks.
        state_width: Levels of the state, m.
        k: Levels attended to in a step.
        variant: With inhibition, a row of M for each level; plain, X + X[args] M[args], without; literal, with
            inhibition, a row of M for each of k ranks, X + X[args] M; or dense, X + X M, the comparison.
        bptt_window: Steps after which gradients are cut while the state goes on; null for all.
        local_mixing: Let drives see the previous position (shift, two taps) or the last four (conv).
        ffn_ratio: Hidden width of the feed-forward network, in widths.
        norm: Norm, without parameters, of what each part of a block reads and the head: rms, the root mean square's, or
            layer, which takes the mean away, too; levels have rms always.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each block with torch.compile, but for the loop over time.
    """

    scales_with_width = ("state_width", "k")
    searched: ClassVar = {"variant": ("inhibited", "plain")}

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        state_width: int = 256,
        k: int = 16,
        variant: Variant = "inhibited",
        bptt_window: int | None = None,
        local_mixing: LocalMixingKind = "none",
        ffn_ratio: int = 4,
        norm: Norm = "rms",
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        check_positive(d_model=d_model, ffn_ratio=ffn_ratio)
        blocks: list[nn.Module] = [
            Block(
                d_model,
                SparseRecurrence(state_width, k, variant, bptt_window),
                local_mixing,
                ffn_ratio * d_model,
                norm,
                num_layers,
            )
            for _ in range(num_layers)
        ]
        super().__init__(vocab_size, d_model, blocks, tie_embeddings, dropout, compile, norm)
        self.save_hyperparameters(logger=False)
