"""Options of Lightning's Trainer: what has no meaning here is refused by name, and so is what Lightning itself refuses.

Lightning takes numbers that it never checks, and options whose place is taken here. Each is honoured or refused before
any work; `FROM` and `NOT_HERE` say which are refused, all others are Lightning's to judge.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from re import findall
from types import TracebackType
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from app.cli.checks import check_seed
from app.cli.help import LIMITS as MEASURED_BY
from app.machine import MatmulPrecision, knows_its_node

FROM = {  # the least value that has a meaning
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
ABOVE_0 = {  # numbers of batches, and what there is in the place of none
    "limit_train_batches": "of none nothing is learnt",
    "val_check_interval": "no validation: --trainer.limit_val_batches 0",
}
NOT_HERE = {  # values that are not taken, and why
    "barebones": (True, "a run keeps its record and checkpoints; measure speed by `python -m app bench`"),
    "enable_checkpointing": (False, "a run always keeps its last and its best checkpoint; leave it out"),
    "max_epochs": (0, "that trains nothing; give more, or -1 for no limit"),
}
NEVER = {  # options that are never taken, and why
    "default_root_dir": "the folder of a run is given by --run_dir",
    "model_registry": "checkpoints stay in the folder of their run; leave it out",
}
LIMITS = (("min_steps", "max_steps"), ("min_epochs", "max_epochs"))
ROOMS = {  # of Lightning's source, and the option that leads there
    "accelerators": "accelerator",
    "callbacks": "callbacks",
    "loggers": "logger",
    "profilers": "profiler",
    "strategies": "strategy",
}


def check_groups(config: Mapping[str, Any], groups: Iterable[str]) -> None:
    """Raise ValueError if YAML has no options where a group of them belongs, such as `trainer: null`."""
    for group in groups:
        if not isinstance(config[group], Namespace):
            raise ValueError(f"{group}: {config[group]} in --config holds no options; write {group}: {{NAME: VALUE}}")


def whole_seed(seed: bool | int) -> int:
    """The seed, also of the data; ValueError for one that no random generator takes."""
    if isinstance(seed, bool):
        raise ValueError(f"--seed_everything {str(seed).lower()} is no number; give the seed itself, such as 1")
    check_seed("seed_everything", seed)
    return seed


# Before a Trainer is built --------------------------------------------------------------------------------------------


class Trainer(L.Trainer):
    """Lightning's Trainer, which knows PyTorch's precision of products in float32, and what amounts of batches mean.

    They mean what was typed: 1 is one batch, 1.0 is all of them.

    Lightning writes their types as `Optional[Union[int, float]]`, of which Python's `typing` keeps one object for both
    orders. If another library asked for `Optional[Union[float, int]]` before, the parser takes every number for a
    float. A type written as below keeps its own order.
    """

    def __init__(
        self,
        *,
        matmul_precision: MatmulPrecision = "highest",
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        **options: Any,
    ) -> None:
        self.matmul_precision = matmul_precision
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            **options,
        )


def check_trainer(options: Mapping[str, Any], verb: str = "fit") -> None:
    """Raise ValueError for the first option of the Trainer that cannot be, or that would change nothing."""
    if verb in MEASURED_BY and options[MEASURED_BY[verb]] == 0:
        raise ValueError(f"--trainer.{MEASURED_BY[verb]} 0 leaves nothing to {verb}; give more, or leave it out")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name in NEVER:
            raise ValueError(f"--trainer.{name}: {NEVER[name]}")
        if name in NOT_HERE and value == NOT_HERE[name][0]:
            raise ValueError(f"--trainer.{name} {str(value).lower()}: {NOT_HERE[name][1]}")
        if name in FROM and not value >= FROM[name]:
            raise ValueError(f"--trainer.{name} is {value}; it must be at least {FROM[name]}")
        if name in ABOVE_0 and isinstance(value, int | float) and not value > 0:
            raise ValueError(f"--trainer.{name} is {value}; it must be a number of batches above 0 ({ABOVE_0[name]})")
    for least, most in LIMITS:
        if 0 <= given.get(most, -1) < given.get(least, 0):
            raise ValueError(f"--trainer.{least} {given[least]} is above --trainer.{most} {given[most]}; lower it")


# What Lightning says --------------------------------------------------------------------------------------------------


@contextmanager
def explaining(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what Lightning refuses into a ValueError that names the option; faults of other code pass as they are."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(trainer_mistake(error, options)) from error
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        if not room_of(error).startswith("lightning."):
            raise
        raise ValueError(trainer_mistake(error, options)) from error


def room_of(error: BaseException) -> str:
    """Name of the module whose code raised an exception."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return str(last.tb_frame.f_globals.get("__name__", "")) if last else ""


def trainer_mistake(error: Exception, options: Mapping[str, Any]) -> str:
    """What Lightning says of its Trainer's options, behind the one that it means.

    That is the first whose name or, in words, whose value it mentions, else the one that leads to the code that
    complains.
    """
    text = " ".join(str(error).split())
    parameters = inspect.signature(L.Trainer).parameters
    named = [word for word in findall(r"\w+", text) if word in parameters]
    words = {name: value for name, value in options.items() if isinstance(value, str) and value not in ("", "auto")}
    meant = [name for name, value in words.items() if value.lower() in text.lower()]
    leading = [ROOMS[room] for room in room_of(error).split(".") if room in ROOMS]
    option = next(iter([*named, *meant, *leading]), None)
    if option is None:
        return f"--trainer: {text}"
    shown = f" {options[option]}" if isinstance(options.get(option), str | int | float) else ""
    return f"--trainer.{option}{shown}: {text}"


# When it is built -----------------------------------------------------------------------------------------------------


def check_launched(trainer: Trainer) -> None:
    """Raise ValueError if other machines would be waited for that nobody starts."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not knows_its_node():
        raise ValueError(
            f"--trainer.num_nodes {trainer.num_nodes}: nothing starts the command on the other machines; start it "
            "there by srun or torchrun, or by hand with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
        )
