"""The training recipe as plain data: AdamW, and the learning rate as a pure function of the step.

lr(step) = learning_rate * lr_scale(step), where the scale warms up linearly and then follows a cosine (Loshchilov &
Hutter, arXiv 1608.03983), stays and decays linearly (warm-up-stable-decay, arXiv 2404.06395), or stays constant.
Decoupled weight decay (arXiv 1711.05101) touches matrices only: never norms, biases, or embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine", "wsd", "constant"]


@dataclass(frozen=True)
class Optim:
    """How the parameters are trained; the same recipe can be used with every model.

    Args:
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled decay of the matrices.
        beta1: Decay rate of Adam's first moment.
        beta2: Decay rate of Adam's second moment.
        schedule: Shape of the learning rate after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        min_lr_ratio: Where cosine and wsd end, as a part of the peak.
        decay_ratio: Part of all steps in which wsd decays.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    min_lr_ratio: float = 0.1
    decay_ratio: float = 0.2

    def __post_init__(self) -> None:
        """Raise ValueError naming the first option outside its range."""
        for name, value, good in (
            ("learning_rate", self.learning_rate, self.learning_rate > 0),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0),
            ("beta1", self.beta1, 0 <= self.beta1 < 1),
            ("beta2", self.beta2, 0 <= self.beta2 < 1),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0),
            ("min_lr_ratio", self.min_lr_ratio, 0 <= self.min_lr_ratio <= 1),
            ("decay_ratio", self.decay_ratio, 0 < self.decay_ratio <= 1),
        ):
            if not good:
                raise ValueError(
                    f"--optim.{name} {value} is out of range; `python -m app fit --help` gives the defaults"
                )


def cosine(progress: float, floor: float) -> float:
    """From 1 at progress 0 to `floor` at progress 1 along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(progress: float, floor: float, decay_ratio: float) -> float:
    """One until the last `decay_ratio` of the way, then linearly down to `floor`."""
    return 1 - (1 - floor) * max(0.0, (progress - (1 - decay_ratio)) / decay_ratio)


def lr_scale(step: int, total_steps: int, optim: Optim) -> float:
    """Factor on the peak learning rate at optimizer step `step` (0 is the first) of `total_steps`."""
    warmup = optim.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if optim.schedule == "cosine":
        return cosine(progress, optim.min_lr_ratio)
    if optim.schedule == "wsd":
        return wsd(progress, optim.min_lr_ratio, optim.decay_ratio)
    return 1.0


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices with weight decay; embeddings, norms, biases and other vectors without."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    spared = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, optim: Optim, fused: bool = True) -> Optimizer:
    """AdamW over the two groups of `decay_groups`; fused where PyTorch has a kernel for the device."""
    groups = decay_groups(module, optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), fused=fused)


def reapply(scheduler: LambdaLR, optim: Optim) -> None:
    """Put the recipe's constants back over those that a checkpoint brought: what is configured now holds."""
    scheduler.base_lrs = [optim.learning_rate] * len(scheduler.base_lrs)
    for group, scale in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["betas"] = (optim.beta1, optim.beta2)
        group["initial_lr"] = optim.learning_rate
        group["lr"] = optim.learning_rate * scale(scheduler.last_epoch)
        if group["weight_decay"]:
            group["weight_decay"] = optim.weight_decay


def grad_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm over all gradients, as a scalar tensor; sharded gradients are gathered."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
