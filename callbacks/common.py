"""What the observing callbacks share: when to look, where TensorBoard writes, and numbers as people read them."""

from __future__ import annotations

import platform
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def at_logging_step(trainer: L.Trainer) -> bool:
    """Whether the batch that ends completes an optimizer step that Lightning logs: the time to read from the device."""
    every = trainer.log_every_n_steps
    return every > 0 and trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate()


def in_fit_validation(trainer: L.Trainer) -> bool:
    """Whether a validation belongs to a fit and is no sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def tensorboard(trainer: L.Trainer) -> TensorBoardLogger | None:
    """The trainer's TensorBoard logger on the process that writes; None elsewhere or without one."""
    loggers = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return next(loggers, None) if trainer.is_global_zero else None


def metrics_of(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Current metrics whose names start with `prefix`, as numbers: waits for the device."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def data_parameters(datamodule: Any) -> dict[str, Any]:
    """Hyper-parameters of a DataModule without the entries that Lightning adds; empty for none."""
    return {name: value for name, value in getattr(datamodule, "hparams", {}).items() if not name.startswith("_")}


def device_name(device: torch.device) -> str:
    """Product name of an accelerator, architecture of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type.upper()


def si(value: float) -> str:
    """Three digits and a prefix: 213456 -> '213 k', for a unit to follow."""
    for factor, prefix in PREFIXES:
        if abs(value) >= 0.9995 * factor:
            return f"{_three_digits(value / factor)} {prefix}"
    return f"{_three_digits(value)} "


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as '12 s', '3 min 20 s' or '2 h 05 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
