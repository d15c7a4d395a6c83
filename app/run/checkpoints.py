"""Reading checkpoints: whether a file is whole, which model wrote it, and one clear sentence where it cannot be used.

A checkpoint is a zip file, whose checksums nobody looks at but we: PyTorch reads a flipped bit as the number that it
makes. To compare them costs about as much as reading the file, 0.06 s for 100 MB.
"""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from app.cli.names import model_names
from models.base import CHECKPOINT_KEY, LanguageModel
from models.optim import state_owners

ANOTHER = "use another, such as best.ckpt of the run"
OUR_ENTRIES = {CHECKPOINT_KEY, "state_dict", "hyper_parameters"}
LIGHTNINGS_ENTRIES = {"global_step", "loops", "pytorch-lightning_version"}
COUNTERS = {"model", "seed", "optim", "tokens_seen", "flops_spent"}


def read_checkpoint(path: Path, option: str = "--ckpt_path") -> dict[str, Any]:
    """Load a checkpoint's tensors and plain values; ValueError if it is missing, damaged, old, or not one of ours."""
    source = f"{option} {path}"
    if not path.is_file():
        raise ValueError(f"{source}: there is no such file")
    try:
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # there is no end of what a reader may make of damaged bytes
        raise ValueError(f"{source} is damaged or no checkpoint; {ANOTHER}") from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= OUR_ENTRIES:
        raise ValueError(f"{source} was not written by this project: it does not tell its model")
    missing = (LIGHTNINGS_ENTRIES - checkpoint.keys()) | (COUNTERS - checkpoint[CHECKPOINT_KEY].keys())
    if missing:
        raise ValueError(f"{source} lacks {', '.join(sorted(missing))}; {ANOTHER}")
    for name, weight in checkpoint["state_dict"].items():
        if not is_finite(weight):
            raise ValueError(f"{source} has weights that are not finite in {name}; {ANOTHER}")
    check_options(checkpoint, source)
    checkpoint["hyper_parameters"] = untold_options(checkpoint) | checkpoint["hyper_parameters"]
    return checkpoint


def check_sums(path: Path) -> None:
    """Raise zipfile.BadZipFile, or what else reading a damaged file comes to, unless every record is as written."""
    with zipfile.ZipFile(path) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {record} is another")


def is_finite(value: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite, in one pass and without a copy."""
    return not value.is_floating_point() or not value.numel() or all(x.isfinite() for x in value.aminmax())


def model_name(checkpoint: dict[str, Any]) -> str:
    """Name of the class that wrote the checkpoint."""
    return str(checkpoint[CHECKPOINT_KEY]["model"])


def hyper_parameters(checkpoint: dict[str, Any], key: str = "hyper_parameters") -> dict[str, Any]:
    """The saved constructor arguments, without Lightning's own entries."""
    return {name: value for name, value in checkpoint.get(key, {}).items() if not name.startswith("_")}


def untold_options(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Options that older checkpoints of the model do not tell, and what held then."""
    model = getattr(models, model_name(checkpoint), None)
    return dict(model.untold) if model else {}


def vocabulary(checkpoint: dict[str, Any]) -> str | None:
    """Characters that the model's tokens stand for, in order; None if it was not trained on text."""
    states = (value for value in checkpoint.values() if isinstance(value, dict))
    return next((state["vocabulary"] for state in states if "vocabulary" in state), None)


def check_options(checkpoint: dict[str, Any], source: str) -> None:
    """Raise ValueError naming the options with which a model of ours was saved and which it has no more."""
    model = getattr(models, model_name(checkpoint), None)
    known = inspect.signature(model).parameters if model else {}
    gone = [f"--model.{name}" for name in hyper_parameters(checkpoint) if model and name not in known]
    if gone:
        raise ValueError(
            f"{source} is of an older version, whose {model_name(checkpoint)} had {', '.join(gone)}; use that version, "
            "or train again"
        )


def load_model(checkpoint: dict[str, Any], source: str) -> LanguageModel:
    """The model that wrote the checkpoint, at the size it has there, in evaluation mode on the CPU.

    Args:
        checkpoint: What `read_checkpoint` gave.
        source: Where it came from, for messages: the option and the file.
    """
    name = model_name(checkpoint)
    if name not in model_names():
        raise ValueError(f"{source} holds a {name}, which is none of the models {', '.join(model_names())}")
    check_weights(checkpoint, getattr(models, name), source)
    model: LanguageModel = getattr(models, name)(**hyper_parameters(checkpoint))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def check_weights(checkpoint: dict[str, Any], model_class: type[LanguageModel], source: str) -> None:
    """Raise ValueError unless the weights are those that the model of the saved hyper-parameters has."""
    try:
        with torch.device("meta"):  # shapes without numbers
            expected = model_class(**hyper_parameters(checkpoint)).state_dict()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} has hyper-parameters that its model does not take: {error}") from error
    weights = checkpoint["state_dict"]
    for name in expected | weights:
        saved, needed = (tuple(state[name].shape) if name in state else None for state in (weights, expected))
        if saved != needed:
            raise ValueError(
                f"{source} has altered weights: {name} is {saved or 'missing'}, but {needed or 'missing'} in the model "
                f"that it names; {ANOTHER}"
            )


def check_training_state(checkpoint: dict[str, Any], model: LanguageModel, source: str) -> None:
    """Raise ValueError unless there is an optimizer state with which the model, whose weights it has, can go on."""
    if not checkpoint.get("optimizer_states") or not checkpoint.get("lr_schedulers"):
        raise ValueError(f"{source} has weights alone, no optimizer state to go on with; use last.ckpt of the run")
    saved = checkpoint["optimizer_states"][0]
    names = {parameter: name for name, parameter in model.named_parameters()}
    try:
        keys = state_owners(saved, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; {ANOTHER}") from error
    for parameter, key in keys.items():
        for part, value in saved["state"].get(key, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"{source} has an altered optimizer state: {part} of {names[parameter]} is {tuple(value.shape)}, "
                    f"not {tuple(parameter.shape)}; {ANOTHER}"
                )
            if isinstance(value, Tensor) and not is_finite(value):
                raise ValueError(
                    f"{source} has an optimizer state that is not finite in {part} of {names[parameter]}; {ANOTHER}"
                )
