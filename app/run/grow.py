"""`python -m app grow`: grow the model in a checkpoint on disk, as the Growth callback does in a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from app.cli.checks import check_file

Sizes = dict[str, int]

# torch is imported inside the function: `grow --help` answers at once.


def grow(
    in_ckpt: Path,
    out_ckpt: Path,
    *,
    num_param_tokens: int | None = None,
    num_ffn_param_tokens: int | None = None,
    num_layers: int | None = None,
    factor: float | None = None,
    init: Literal["split", "zero_keys", "zero_values", "random", "fresh", "zeros"] = "split",
    split_noise: float = 1.0,
    tau: Literal["sqrt_n", "ramped", "frozen"] = "sqrt_n",
    carry: Literal["per_row", "asymmetric", "mean", "zeros", "reset"] = "per_row",
    rewarm_steps: int = 50,
    layer_init: Literal["stack", "exact"] = "stack",
) -> None:
    """Grow the model in IN_CKPT, optimizer state included; `fit --ckpt_path OUT_CKPT` goes on at the same step.

    Args:
        in_ckpt: A checkpoint: a file, a run folder, last, or best.
        out_ckpt: Where to write the grown one; must not exist.
        num_param_tokens: New size of each attention projection.
        num_ffn_param_tokens: New size of each feed-forward network.
        num_layers: New number of blocks; every model has them.
        factor: New numbers of parameter tokens as a multiple of the present ones, where no size is given.
        init: How parameter tokens are added; split keeps the function and lets them learn, zero_keys unless tau jumps.
        split_noise: Noise on the values of split rows, as a multiple of their root mean square.
        tau: Whether the scale becomes the root of the new size (sqrt_n, exact where rows are split, else a jump), does
            so within the re-warm (ramped), or stays (frozen); the last two are exact.
        carry: What becomes of the optimizer's moments.
        rewarm_steps: Steps in which the learning rate of rows without moments rises to that of the others.
        layer_init: Whether blocks are added as copies (stack), or as copies that add nothing at first (exact).
    """
    import torch

    from app.run.checkpoints import check_training_state, load_model, model_name, read_checkpoint
    from app.run.folders import find_checkpoint
    from callbacks.atomic import save_atomically
    from models.growth import GrowableModel, GrowthRules, grow_checkpoint, grown_sizes

    if out_ckpt.exists():
        raise ValueError(f"OUT_CKPT {out_ckpt} exists; name a new file")
    check_file("OUT_CKPT", out_ckpt)
    check_factor(factor)
    rules = GrowthRules(init, split_noise, tau, carry, rewarm_steps, layer_init)
    rules.check()
    in_ckpt = find_checkpoint(str(in_ckpt), option="IN_CKPT")
    checkpoint = read_checkpoint(in_ckpt, "IN_CKPT")
    model = load_model(checkpoint, f"IN_CKPT {in_ckpt}")
    if not isinstance(model, GrowableModel):
        raise ValueError(f"IN_CKPT {in_ckpt} holds a {model_name(checkpoint)}, which does not grow")
    given = {
        "num_param_tokens": num_param_tokens, "num_ffn_param_tokens": num_ffn_param_tokens, "num_layers": num_layers,
    }  # fmt: skip
    sizes = target_sizes(given, factor, model.growing_sizes(), model.parameter_token_sizes(), model_name(checkpoint))
    check_training_state(checkpoint, model, f"IN_CKPT {in_ckpt}")
    event = grow_checkpoint(model, checkpoint, sizes, rules)
    save_atomically(lambda temporary: torch.save(checkpoint, temporary), out_ckpt)
    print(f"{out_ckpt}: {grown_sizes(event)}; {model.num_parameters():,} parameters")
    print(f"largest change of a logit: {event['logit_change']:.1e}")
    print(f"go on with `python -m app fit --ckpt_path {out_ckpt}`")


def check_factor(factor: float | None) -> None:
    """Raise ValueError for one that would shrink the model, or is no number."""
    if factor is not None and not 1 <= factor < math.inf:
        raise ValueError(f"--factor is {factor}; it must be a number of at least 1: growth only adds")


def target_sizes(
    given: Mapping[str, int | None], factor: float | None, current: Sizes, tokens: Sizes, name: str
) -> Sizes:
    """Sizes to grow to, of all that are given, and of parameter tokens by the factor; ValueError if nothing grows."""
    sizes = {group: size for group, size in given.items() if size is not None}
    if factor is not None and not tokens:
        raise ValueError(f"--factor: a {name} has no parameter tokens; give --num_layers")
    if factor is not None:
        sizes = {group: round(size * factor) for group, size in tokens.items()} | sizes
    if not sizes:
        raise ValueError(f"nothing to grow; give {', '.join(f'--{group}' for group in given)} or --factor")
    if all(current.get(group) == size for group, size in sizes.items()):
        raise ValueError("nothing to grow: IN_CKPT has these sizes already; give larger ones")
    return sizes
