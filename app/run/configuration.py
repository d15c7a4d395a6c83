"""What a run is configured by: options, the checkpoint that it goes on from, and whether the two fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from app.cli.mistakes import UsageError
from app.run.checkpoints import hyper_parameters, model_name, untold_options, vocabulary
from app.run.folders import run_dir_of
from datamodules.char_text import shown
from models.base import CHECKPOINT_KEY, LanguageModel
from models.optim import Optim


def refuse_linked(args: list[str]) -> None:
    """Raise UsageError for options whose value comes from another one."""
    for option, source in (("--model.vocab_size", "--data"), ("--data.seed", "--seed_everything")):
        if any(arg.partition("=")[0] == option for arg in args):
            raise UsageError(f"{option} is not an option of its own: {source} gives it; leave it out")


def check_fits(checkpoint: dict[str, Any], path: Path, model: LanguageModel, data: LightningDataModule) -> None:
    """Raise ValueError unless the checkpoint was written by such a model, of these widths, on this vocabulary."""
    if model_name(checkpoint) != type(model).__name__:
        raise ValueError(
            f"--ckpt_path {path} holds a {model_name(checkpoint)}; it cannot go on as --model {type(model).__name__}"
        )
    characters, own = vocabulary(checkpoint), data.state_dict().get("vocabulary")
    if characters != own:
        differ = sorted(set(characters or "") ^ set(own or ""))
        raise ValueError(
            f"--ckpt_path {path} was trained on another vocabulary ({len(characters or '')} characters, the data has "
            f"{len(own or '')}; they differ in {shown(differ)}); use the --data and --data.corpus it was trained on"
        )
    events = checkpoint[CHECKPOINT_KEY].get("growth_events", [])
    first = events[0]["from"] if events else {}
    for name, value in hyper_parameters(checkpoint).items():
        own = model.hparams.get(name)
        if own not in (value, first.get(name, value)) and name not in ("compile", "dropout"):
            raise ValueError(f"--ckpt_path {path} has {name} {value}, --model.{name} is {own}")


def check_optimizer(checkpoint: dict[str, Any], path: Path, optim: Optim) -> None:
    """Raise ValueError if the checkpoint's optimizer state is of another algorithm than the one configured."""
    saved = checkpoint[CHECKPOINT_KEY]["optim"]["optimizer"]
    if saved != optim.optimizer:
        raise ValueError(
            f"--optim.optimizer {optim.optimizer} cannot go on from --ckpt_path {path}, whose optimizer state is "
            f"{saved}'s; leave it out, or begin a new run"
        )


def configuration_of(path: Path, checkpoint: dict[str, Any]) -> str:
    """Configuration of the run that wrote the checkpoint: a file, or YAML made of the saved hyper-parameters."""
    if folder := run_dir_of(path):
        return str(folder / "config.yaml")
    config = {"model": _class_config(checkpoint, "hyper_parameters", model_name(checkpoint), "vocab_size")}
    if data := checkpoint.get("datamodule_hyper_parameters"):
        config["data"] = _class_config(
            checkpoint, "datamodule_hyper_parameters", data.get("_class_path", "CharText"), "seed"
        )
    return yaml.safe_dump(config | {"optim": checkpoint[CHECKPOINT_KEY]["optim"]})


def untold_by_configuration(checkpoint: dict[str, Any]) -> list[str]:
    """Options, as they are typed, that an older run's configuration does not have, with the checkpoint's values."""
    known = hyper_parameters(checkpoint)
    return [f"--model.{name}={known[name]}" for name in untold_options(checkpoint)]


def _class_config(content: dict[str, Any], key: str, class_path: str, linked: str) -> dict[str, Any]:
    arguments = {name: value for name, value in hyper_parameters(content, key).items() if name != linked}
    return {"class_path": class_path, "init_args": arguments}
