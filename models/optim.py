"""The training recipe as plain data: AdamW or Muon, and the learning rate as a pure function of the step.

lr(step) = learning_rate * lr_scale(step), where the scale warms up linearly and then follows a cosine (Loshchilov &
Hutter, arXiv 1608.03983), stays and decays linearly (warm-up-stable-decay, arXiv 2404.06395), or stays constant.
Decoupled weight decay (arXiv 1711.05101) touches matrices only: never norms, biases, or embeddings. A tied matrix,
which is embedding and head at once, is trained at the head's rate: embeddings are normalised, so that a high rate suits
them which the logits could not bear. At each restart all of the schedule begins anew (the idea of SGDR, arXiv
1608.03983, at steps of one's choice).

Muon orthogonalises the momentum of each hidden matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon), while
embeddings, head and vectors stay with AdamW; to Lightning the two are one optimizer.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine", "wsd", "constant"]
Algorithm = Literal["adamw", "muon"]
MuonScale = Literal["match_rms_adamw", "original"]
Kind = Literal["matrices", "head", "embeddings", "tied", "vectors"]
Group = dict[str, Any]
FIRST_MOMENTUM = 0.85  # where the warm-up of Muon's momentum begins, as in nanochat


RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (  # options of Optim, and what each must be
    (("learning_rate", "eps"), lambda x: 0 < x < math.inf, "above 0"),
    (
        ("matrix_learning_rate", "head_learning_rate", "embedding_learning_rate"),
        lambda x: x is None or 0 < x < math.inf,
        "above 0, or null",
    ),
    (("weight_decay", "momentum_warmup_steps", "warmup_steps"), lambda x: 0 <= x < math.inf, "at least 0"),
    (("beta1", "beta2", "momentum"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("min_lr_ratio",), lambda x: 0 <= x <= 1, "from 0 to 1"),
    (("decay_ratio",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
    (
        ("restart_steps",),
        lambda x: all(a < b for a, b in pairwise([0, *(x or [])])),
        "ascending steps above 0",
    ),
)


@dataclass(frozen=True)
class Optim:
    """How the parameters are trained; the same recipe can be used with every model.

    Args:
        optimizer: Optimizer of the hidden matrices; embeddings, head and vectors have AdamW always.
        learning_rate: Peak of the schedule.
        matrix_learning_rate: Peak for the hidden matrices; null for learning_rate.
        head_learning_rate: Peak for the head, and for embeddings that are tied to it; null for learning_rate.
        embedding_learning_rate: Peak for the other embeddings; null for learning_rate.
        weight_decay: Decoupled decay of the matrices, the head among them.
        beta1: Decay rate of Adam's first moment.
        beta2: Decay rate of Adam's second moment.
        eps: Added to the root of Adam's second moment.
        momentum: Decay rate of Muon's moment.
        momentum_warmup_steps: Optimizer steps in which Muon's momentum rises from 0.85.
        muon_scale: Size of Muon's update: the RMS of AdamW's, so that learning rates carry over, or the original.
        schedule: Shape of the learning rate after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        min_lr_ratio: Where cosine and wsd end, as a part of the peak.
        decay_ratio: Part of all steps in which wsd decays.
        restart_steps: Optimizer steps before which warm-up and schedule begin anew, each running whole to the next.
    """

    optimizer: Algorithm = "adamw"
    learning_rate: float = 3e-3
    matrix_learning_rate: float | None = None
    head_learning_rate: float | None = None
    embedding_learning_rate: float | None = None
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    momentum: float = 0.95
    momentum_warmup_steps: int = 0
    muon_scale: MuonScale = "match_rms_adamw"
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    min_lr_ratio: float = 0.1
    decay_ratio: float = 0.2
    restart_steps: list[int] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the first option outside its range."""
        for names, holds, words in RANGES:
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"--optim.{name} is {getattr(self, name)}; it must be {words}")

    def peak(self, kind: Kind) -> float:
        """Peak learning rate of a kind of parameters."""
        own = {
            "matrices": self.matrix_learning_rate,
            "head": self.head_learning_rate,
            "tied": self.head_learning_rate,
            "embeddings": self.embedding_learning_rate,
        }
        return own.get(kind) or self.learning_rate


def cosine(progress: float, floor: float) -> float:
    """From 1 at progress 0 to `floor` at progress 1 along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(progress: float, floor: float, decay_ratio: float) -> float:
    """One until the last `decay_ratio` of the way, then linearly down to `floor`."""
    return 1 - (1 - floor) * max(0.0, (progress - (1 - decay_ratio)) / decay_ratio)


def segment(step: int, total_steps: float, restarts: list[int]) -> tuple[int, float]:
    """Steps at which the part of the schedule that has `step` begins and ends; ValueError if one would not begin."""
    if restarts and restarts[-1] >= total_steps:
        raise ValueError(
            f"--optim.restart_steps {restarts} must lie below the {total_steps} steps of the run (--trainer.max_steps)"
        )
    begun = bisect_right(restarts, step)
    return [0, *restarts][begun], [*restarts, total_steps][begun]


def lr_scale(step: int, total_steps: float, optim: Optim) -> float:
    """Factor on the peak learning rate at optimizer step `step` (0 is the first) of `total_steps`.

    Of a run without an end, of infinitely many steps, nothing is over: its schedule stays where the warm-up ends.
    """
    begin, end = segment(step, total_steps, optim.restart_steps or [])
    step, total_steps, warmup = step - begin, end - begin, optim.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if optim.schedule == "cosine":
        return cosine(progress, optim.min_lr_ratio)
    if optim.schedule == "wsd":
        return wsd(progress, optim.min_lr_ratio, optim.decay_ratio)
    return 1.0


def parameters_by_kind(
    module: nn.Module, columns: Kind = "vectors", tied: Kind = "tied"
) -> dict[Kind, list[nn.Parameter]]:
    """Trained parameters of a model: hidden matrices, head, embeddings, what is both of these, and vectors.

    A vector has one number a row, be its shape (n,) or (n, 1). A weight of nn.Linear is a matrix, however narrow.

    Args:
        module: The model.
        columns: Kind of parameters of shape (n, 1); checkpoints of older versions count them among the matrices.
        tied: Kind of what is embedding and head; checkpoints of older versions count it among the embeddings.
    """
    modules = list(module.modules())
    embeddings = {id(p) for m in modules if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    linear = {id(m.weight) for m in modules if isinstance(m, nn.Linear)}
    head = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if name.startswith("head.")}
    kinds: dict[Kind, list[nn.Parameter]] = {kind: [] for kind in get_args(Kind)}
    for p in (p for p in module.parameters() if p.requires_grad):
        if p.ndim < 2:
            kinds["vectors"].append(p)
        elif id(p) in embeddings:
            kinds[tied if id(p) in head else "embeddings"].append(p)
        elif id(p) in head:
            kinds["head"].append(p)
        else:
            kinds[columns if p.numel() == p.size(0) and id(p) not in linear else "matrices"].append(p)
    return kinds


def group_options(kind: Kind, optim: Optim) -> Group:
    """What the recipe says of one kind of parameters, as options of a parameter group."""
    decay = optim.weight_decay if kind in ("matrices", "head") else 0.0
    options: Group = {"kind": kind, "initial_lr": optim.peak(kind), "weight_decay": decay}
    if kind == "matrices" and optim.optimizer == "muon":
        momentum = {"peak_momentum": optim.momentum, "momentum_warmup_steps": optim.momentum_warmup_steps}
        return options | momentum | {"adjust_lr_fn": optim.muon_scale}
    return options | {"betas": (optim.beta1, optim.beta2), "eps": optim.eps}


def build_optimizer(module: nn.Module, optim: Optim, fused: bool = True) -> Optimizer:
    """One optimizer over a group for each kind of parameters; fused where PyTorch has a kernel for the device.

    It takes the state that any of our checkpoints has, see `regrouped`.
    """
    groups: list[Group] = [
        {"params": parameters, "lr": optim.peak(kind)} | group_options(kind, optim)
        for kind, parameters in parameters_by_kind(module).items()
        if parameters
    ]
    muon = optim.optimizer == "muon"
    optimizer: Optimizer = MuonAdamW(groups, fused) if muon else torch.optim.AdamW(groups, fused=fused)
    optimizer.register_load_state_dict_pre_hook(lambda optimizer, saved: regrouped(saved, optimizer, module))
    return optimizer


def state_owners(saved: Group, module: nn.Module) -> dict[nn.Parameter, Any]:
    """The key that each parameter has in a saved optimizer state; ValueError if the state is another model's.

    Its order in the group alone tells a parameter: what number it has depends on the strategy that saved it.
    """
    groups = {group["kind"]: group["params"] for group in saved["param_groups"]}
    groupings: Iterable[tuple[Kind, Kind]] = product(("vectors", "matrices"), ("tied", "embeddings"))  # now, and once
    for columns, tied in groupings:
        kinds = {kind: ps for kind, ps in parameters_by_kind(module, columns, tied).items() if ps}
        if {kind: len(ps) for kind, ps in kinds.items()} == {kind: len(keys) for kind, keys in groups.items()}:
            return {p: key for kind, ps in kinds.items() for p, key in zip(ps, groups[kind], strict=True)}
    raise ValueError("the optimizer state is of other parameters than the model's")


def regrouped(saved: Group, optimizer: Optimizer, module: nn.Module) -> Group:
    """A saved optimizer state in the optimizer's own groups, with its own kernels.

    A vector that was once Muon's begins anew: its state has no use for AdamW.
    """
    key_of = state_owners(saved, module)
    saved_groups = {group["kind"]: group for group in saved["param_groups"]}
    groups, state = [], dict(saved["state"])
    for group in optimizer.param_groups:
        keys = [key_of[p] for p in group["params"]]
        groups.append(group | saved_groups.get(group["kind"], {}) | {"params": keys, "fused": group["fused"]})
        if group["kind"] != "matrices":
            state = {key: entry for key, entry in state.items() if key not in keys or "momentum_buffer" not in entry}
    return {"state": state, "param_groups": groups}


def named_state(saved: Group, module: nn.Module) -> Group:
    """A saved state of AdamW by the parameters' names; a parameter without one has that before its first step."""
    key_of = state_owners(saved, module)
    name_of = {key_of[p]: name for name, p in module.named_parameters() if p in key_of}
    state = dict(saved["state"])
    for p, key in key_of.items():
        zeros = torch.zeros(p.shape, dtype=p.dtype)
        state.setdefault(key, {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros})
    groups = [group | {"params": [name_of[key] for key in group["params"]]} for group in saved["param_groups"]]
    return {"state": {name_of[key]: entry for key, entry in state.items()}, "param_groups": groups}


def warmed_momentum(step: int, momentum: float, warmup_steps: int) -> float:
    """Muon's momentum at its `step`-th update, from 0: up from 0.85 in `warmup_steps`, then `momentum`."""
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return momentum * progress + min(FIRST_MOMENTUM, momentum) * (1 - progress)


class MuonAdamW(Optimizer):
    """Muon for the group of kind "matrices" and AdamW for the others, as one optimizer with one state.

    Both work on this object's groups and state, so that a checkpoint, a schedule and growth see nothing special.

    Args:
        groups: Parameter groups as `build_optimizer` makes them; matrices must have two dimensions.
        fused: Whether AdamW is fused.
    """

    _pair: tuple[Optimizer, Optimizer] | None = None  # made at the first step: a copy takes groups and state only

    def __init__(self, groups: list[Group], fused: bool) -> None:
        super().__init__([{"updates": 0, "fused": fused} | group for group in groups], {})

    def _delegates(self) -> tuple[Optimizer, Optimizer]:
        matrices = [group for group in self.param_groups if group["kind"] == "matrices"]
        others = [group for group in self.param_groups if group["kind"] != "matrices"]
        if self._pair is None:
            self._pair = (torch.optim.Muon(matrices), torch.optim.AdamW(others))
        for optimizer, groups in zip(self._pair, (matrices, others), strict=True):
            optimizer.param_groups, optimizer.state = groups, self.state
        return self._pair

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups; Muon's momentum follows its warm-up."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        delegates = self._delegates()
        for group in self.param_groups:
            if group["kind"] == "matrices":
                warmup = group["momentum_warmup_steps"]
                group["momentum"] = warmed_momentum(group["updates"], group["peak_momentum"], warmup)
            group["updates"] += 1
        for optimizer in delegates:
            optimizer.step()
        return loss


def reapply(scheduler: LambdaLR, optim: Optim) -> None:
    """Put the recipe's constants back over those that a checkpoint brought: what is configured now holds."""
    for group, scale in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group.update(group_options(group["kind"], optim))
        group["lr"] = group["initial_lr"] * scale(scheduler.last_epoch)
    scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]


def grad_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm over all gradients, as a scalar tensor; sharded gradients are gathered."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
