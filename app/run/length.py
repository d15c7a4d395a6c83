"""How long a run is: what is said in epochs becomes optimizer steps, as the training stream has no end.

An epoch is a name for so many batches of the stream. Nothing is cut where one ends: neither an accumulation of
gradients nor the workers' reading ahead; and a schedule knows how many steps it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Options = Mapping[str, Any]
NO_LIMIT = (None, 1.0)


def in_steps(options: Options, batches: int, default_interval: int) -> dict[str, Any]:
    """The Trainer's options, with what is counted in epochs counted in optimizer steps or batches.

    Args:
        options: All of --trainer.
        batches: Batches of an epoch of the data, which --trainer.limit_train_batches may shorten.
        default_interval: --trainer.val_check_interval where nobody gave one.
    """
    if has_epochs(options):
        return dict(options)
    epoch, min_epochs = batches_of_epoch(options, batches), options["min_epochs"]
    interval = validation_interval(options, epoch, default_interval)
    all_epochs = steps_of_epochs(options, batches)
    if all_epochs is None and not min_epochs and interval == options["val_check_interval"] and epoch != batches:
        raise ValueError(
            f"--trainer.limit_train_batches {options['limit_train_batches']} is the length of an epoch, in which "
            "nothing is counted here; give --trainer.max_epochs, or --trainer.max_steps instead"
        )
    ends = [steps for steps in (options["max_steps"], all_epochs) if steps is not None and steps >= 0]
    min_steps = max(options["min_steps"] or 0, steps_of(min_epochs or 0, epoch, options))
    return dict(options) | {
        "max_steps": min(ends, default=options["max_steps"]),
        "max_epochs": -1,
        "min_steps": min_steps or None,
        "min_epochs": 0,  # None would be one epoch, and the stream's only one never ends
        "limit_train_batches": None,
        "val_check_interval": interval,
        "check_val_every_n_epoch": None,
    }


def has_epochs(options: Options) -> bool:
    """Whether the same few batches come again and again, for a trial: these have an end."""
    return bool(options["fast_dev_run"] or options["overfit_batches"])


def steps_of(epochs: int, epoch: int, options: Options) -> int:
    """Optimizer steps that use all batches of so many epochs."""
    return -(-epochs * epoch // int(options["accumulate_grad_batches"]))


def steps_of_epochs(options: Options, batches: int) -> int | None:
    """Optimizer steps of --trainer.max_epochs; None where that is no limit."""
    max_epochs = options["max_epochs"]
    if max_epochs is None or max_epochs < 0 or has_epochs(options):
        return None
    return steps_of(max_epochs, batches_of_epoch(options, batches), options)


def batches_of_epoch(options: Options, batches: int) -> int:
    """Batches of an epoch: those of the data, or as many or such a part of them as the limit says."""
    limit = options["limit_train_batches"]
    if limit in NO_LIMIT:
        return batches
    length = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if length < 1:
        raise ValueError(f"--trainer.limit_train_batches {limit} of the {batches} batches of an epoch trains nothing")
    return length


def validation_interval(options: Options, epoch: int, default_interval: int) -> Any:
    """Batches from one validation to the next; a limit of time is left as it is."""
    interval, epochs = options["val_check_interval"], options["check_val_every_n_epoch"]
    if epochs is not None:
        if epochs < 1 or interval not in (*NO_LIMIT, default_interval):
            raise ValueError(
                f"--trainer.check_val_every_n_epoch {epochs} and --trainer.val_check_interval {interval} both say when "
                "to validate; give one of them, at least 1"
            )
        return epochs * epoch
    interval = 1.0 if interval is None else interval
    return max(1, int(interval * epoch)) if isinstance(interval, float) and 0 < interval <= 1 else interval


def check_steps(options: Options, max_steps: int, done: int, *, finishes: bool) -> None:
    """Raise ValueError unless a fit to `max_steps` has something to do after the `done` steps of its checkpoint.

    `finishes` says that it goes on in its own folder: then what comes after the last step may be left.
    """
    if max_steps < 0 or max_steps > done or (finishes and max_steps == done):
        return
    given = "max_steps" if max_steps == options["max_steps"] else "max_epochs"
    begin = f"the checkpoint is at step {done} already" if done else "that trains nothing"
    raise ValueError(f"--trainer.{given} {options[given]}: {begin}; give more {given.removeprefix('max_')}")
