"""Reading checkpoints: what is in a file, which model wrote it, and one clear sentence where it cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

import models
from models.base import CHECKPOINT_KEY, LanguageModel


def read_checkpoint(path: Path, option: str = "--ckpt_path") -> dict[str, Any]:
    """Load a checkpoint's tensors and plain values; ValueError if it is missing, damaged, or not one of ours."""
    if not path.is_file():
        raise ValueError(f"{option} {path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(
            f"{option} {path} is damaged or no checkpoint; use another, such as best.ckpt of the run"
        ) from error
    if not isinstance(checkpoint, dict) or not {CHECKPOINT_KEY, "state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"{option} {path} was not written by this project: it does not tell its model")
    return checkpoint


def model_name(checkpoint: dict[str, Any]) -> str:
    """Name of the class that wrote the checkpoint."""
    return str(checkpoint[CHECKPOINT_KEY]["model"])


def hyper_parameters(checkpoint: dict[str, Any], key: str = "hyper_parameters") -> dict[str, Any]:
    """The saved constructor arguments, without Lightning's own entries."""
    return {name: value for name, value in checkpoint.get(key, {}).items() if not name.startswith("_")}


def vocabulary(checkpoint: dict[str, Any]) -> str | None:
    """Characters that the model's tokens stand for, in order; None if it was not trained on text."""
    states = (value for value in checkpoint.values() if isinstance(value, dict))
    return next((state["vocabulary"] for state in states if "vocabulary" in state), None)


def load_model(checkpoint: dict[str, Any]) -> LanguageModel:
    """The model that wrote the checkpoint, at the size it has there, in evaluation mode on the CPU."""
    model: LanguageModel = getattr(models, model_name(checkpoint))(**hyper_parameters(checkpoint))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()
