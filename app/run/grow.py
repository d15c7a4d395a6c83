"""`python -m app grow`: add parameter tokens to a checkpoint on disk, as the Growth callback does in a fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from app.cli.checks import check_file

# torch is imported inside the function: `grow --help` answers at once.


def grow(
    in_ckpt: Path,
    out_ckpt: Path,
    *,
    num_param_tokens: int | None = None,
    num_ffn_param_tokens: int | None = None,
    factor: float | None = None,
    init: Literal["zero_keys", "zero_values", "random", "zeros"] = "zero_keys",
    tau: Literal["frozen", "ramped", "sqrt_n"] = "frozen",
    carry: Literal["per_row", "mean", "zeros", "reset"] = "per_row",
    rewarm_steps: int = 50,
) -> None:
    """Grow IN_CKPT's parameter tokens, optimizer state included; `fit --ckpt_path OUT_CKPT` goes on at the same step.

    Args:
        in_ckpt: A checkpoint of a model with parameter tokens: a file, a run folder, last, or best.
        out_ckpt: Where to write the grown one; must not exist.
        num_param_tokens: New size of each attention projection.
        num_ffn_param_tokens: New size of each feed-forward network.
        factor: New sizes as a multiple of the present ones, where no size is given.
        init: How new rows start; only zero_keys keeps the function and lets them learn.
        tau: Whether the scale stays (frozen, exact), rises within the re-warm to the root of the new size (ramped,
            exact at the growth itself), or becomes that at once (sqrt_n).
        carry: What becomes of the optimizer's moments.
        rewarm_steps: Steps in which the new rows' learning rate rises to that of the others.
    """
    import torch

    from app.run.checkpoints import check_training_state, load_model, model_name, read_checkpoint
    from app.run.folders import find_checkpoint
    from callbacks.atomic import save_atomically
    from models.growth import GrowableModel, check_rewarm, grow_checkpoint

    if out_ckpt.exists():
        raise ValueError(f"OUT_CKPT {out_ckpt} exists; name a new file")
    check_file("OUT_CKPT", out_ckpt)
    if factor is not None and not 1 <= factor < math.inf:
        raise ValueError(f"--factor is {factor}; it must be a number of at least 1: growth only adds")
    check_rewarm(rewarm_steps, tau)
    in_ckpt = find_checkpoint(str(in_ckpt), option="IN_CKPT")
    checkpoint = read_checkpoint(in_ckpt, "IN_CKPT")
    model = load_model(checkpoint, f"IN_CKPT {in_ckpt}")
    if not isinstance(model, GrowableModel):
        raise ValueError(f"IN_CKPT {in_ckpt} holds a {model_name(checkpoint)}, which has no parameter tokens to grow")
    given = {"num_param_tokens": num_param_tokens, "num_ffn_param_tokens": num_ffn_param_tokens}
    sizes = {group: size for group, size in given.items() if size is not None}
    if factor is not None:
        sizes = {group: round(size * factor) for group, size in model.parameter_token_sizes().items()} | sizes
    if not sizes:
        raise ValueError("nothing to grow; give --num_param_tokens, --num_ffn_param_tokens or --factor")
    if all(model.parameter_token_sizes().get(group) == size for group, size in sizes.items()):
        raise ValueError(f"nothing to grow: IN_CKPT {in_ckpt} has these sizes already; give larger ones")
    check_training_state(checkpoint, model, f"IN_CKPT {in_ckpt}")
    event = grow_checkpoint(model, checkpoint, sizes, init=init, tau=tau, carry=carry, rewarm_steps=rewarm_steps)
    save_atomically(lambda temporary: torch.save(checkpoint, temporary), out_ckpt)
    change = ", ".join(f"{group} {event['from'][group]} -> {size}" for group, size in event["to"].items())
    print(f"{out_ckpt}: {change}; {model.num_parameters():,} parameters")
    print(f"largest change of a logit: {event['logit_change']:.1e}")
    print(f"go on with `python -m app fit --ckpt_path {out_ckpt}`")
