"""fit, validate, test and predict: LightningCLI with our groups of options, run folders and checkpoints.

A checkpoint brings its own configuration: that of its run folder, or else its saved hyper-parameters, is read before
what the command line says, so that `test --ckpt_path FILE` needs nothing more and any option can still be changed.
"""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import datamodules  # noqa: F401 - their classes become choices of --data
import models  # noqa: F401 - and of --model
from app.cli.help import known_names
from app.cli.invocation import typed_arguments
from app.cli.mistakes import ParserError, UsageError, explained
from app.machine import announce_run_dir
from app.run.checkpoints import read_checkpoint
from app.run.configuration import check_fits, check_optimizer, configuration_of, refuse_linked, trainer_mistake
from app.run.folders import (
    RUNS,
    find_checkpoint,
    is_run_of,
    make_writable,
    new_run_dir,
    options_before_parsing,
    run_dir_of,
)
from callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Growth,
    Narrator,
    Predictions,
    Record,
    RunStopped,
    Samples,
    ScalingCurves,
    Throughput,
)
from callbacks.console import ModelSummary, say
from callbacks.lightning_internals import FSDP2, ProgressBar
from datamodules import TaskData
from models.base import LanguageModel
from models.optim import Optim

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 1000,
    "max_epochs": -1,
    "val_check_interval": 250,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,
}
QUIET = (  # what libraries say about things that are as they should be
    r".*does not have many workers.*",
    r"The number of training batches .* is smaller than the logging interval.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r"Couldn't infer the batch indices.*",
    r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True\)`.*",  # these are of all processes already
    r"LightningCLI's args parameter is intended to run from within Python.*",
    r".*available but not used.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The dirpath has changed.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*barrier\(\): using the device under current context.*",
)


class CLIParser(LightningArgumentParser):
    """LightningCLI's parser, raising ParserError instead of printing and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParserError."""
        raise ParserError(message, self) from ex


class CLI(LightningCLI):
    """Parses, builds model, data and trainer, and checks that they fit the checkpoint; `start` runs the verb."""

    def __init__(self, verb: str, args: list[str], path: Path | None, checkpoint: dict[str, Any]) -> None:
        self.verb, self.arguments, self.checkpoint_path, self.checkpoint = verb, args, path, checkpoint
        super().__init__(
            model_class=LanguageModel,
            datamodule_class=TaskData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigCallback if verb == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_class=CLIParser,
            parser_kwargs={"prog": f"python -m app {verb}", "allow_abbrev": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our groups of options, and what is never typed twice."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Folder of the run (default: runs/MODEL-DATA)."
        )
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint: a file, last, or best.")
        parser.add_class_arguments(Optim, "optim")
        for callback, group in ((Growth, "growth"), (Samples, "samples"), (Checkpoints, "checkpoints")):
            parser.add_lightning_class_args(callback, group)
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse values that would fail later without a word of the option."""
        super().parse_arguments(parser, args)
        trainer, done = self.config["trainer"], int(self.checkpoint.get("global_step", 0))
        if not 0 <= int(self.config["seed_everything"]) < 2**32:
            raise ValueError(f"--seed_everything {self.config['seed_everything']} is not between 0 and 2^32 - 1")
        if trainer["val_check_interval"] is not None and trainer["val_check_interval"] <= 0:
            raise ValueError(
                f"--trainer.val_check_interval is {trainer['val_check_interval']}; it must be above 0 (no validation: "
                "--trainer.limit_val_batches 0)"
            )
        if self.verb == "fit" and 0 <= trainer["max_steps"] <= done:
            begin = f"the checkpoint is at step {done} already" if done else "that trains nothing"
            raise ValueError(f"--trainer.max_steps {trainer['max_steps']}: {begin}; give more steps")

    def before_instantiate_classes(self) -> None:
        """Decide on the run folder: that of the checkpoint, unless another is named among the options."""
        names = [self.config[key]["class_path"].rsplit(".", 1)[-1] for key in ("model", "data")]
        base = Path(self.config["run_dir"] or RUNS / "-".join(names))
        folder = run_dir_of(self.checkpoint_path) if self.checkpoint_path else None
        named = any(arg.partition("=")[0] == "--run_dir" for arg in self.arguments)
        self.run_dir = folder if folder and (not named or is_run_of(folder, base)) else new_run_dir(base)
        self.config["ckpt_path"] = None  # the saved configuration describes the run, not how it was resumed

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with our logger, checkpoint files and callbacks beside what the user configured."""
        self.model.optim = self.config_init["optim"]
        config = dict(self.config_init["trainer"]) | {"default_root_dir": str(self.run_dir)} | kwargs
        if config["logger"] in (None, True):
            config["logger"] = TensorBoardLogger(
                self.run_dir, name="", version="", default_hp_metric=False, purge_step=self._resumed_step()
            )
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        config["callbacks"] = [*_as_list(config["callbacks"]), *self._callbacks(config)]
        try:
            return super().instantiate_trainer(**config)
        except (ValueError, MisconfigurationException) as error:
            raise ValueError(trainer_mistake(error)) from error

    def _callbacks(self, config: dict[str, Any]) -> list[Any]:
        """All but those that are groups of options, which Lightning adds behind them."""
        best = ModelCheckpoint(
            Checkpoints.directory(self.run_dir), "best", monitor="val/loss", save_on_train_epoch_end=False,
            enable_version_counter=False,
        )  # fmt: skip
        watching = [Throughput(), ScalingCurves(), Record(typed_arguments()), Narrator()]
        rich = [ModelSummary(max_depth=2), ProgressBar()] if sys.stdout.isatty() else []
        if not rich:  # lines of text instead of a bar that nobody sees
            config["enable_progress_bar"] = config["enable_model_summary"] = False
        return [*watching, *rich, Predictions(), *([best] if self.verb == "fit" else [])]

    def _resumed_step(self) -> int | None:
        if self.verb == "fit" and self.checkpoint_path:
            return int(self.checkpoint["global_step"]) + 1
        return None

    def start(self) -> None:
        """Run the verb; a run that fails before its first step leaves no folder behind."""
        is_new = make_writable(self.run_dir)
        try:
            self._start()
        except RunStopped:
            raise
        except Exception:
            if is_new and self.trainer.is_global_zero and self.trainer.global_step == 0:
                shutil.rmtree(self.run_dir, ignore_errors=True)
            raise

    def _start(self) -> None:
        announce_run_dir(self.run_dir)
        kwargs = {"return_predictions": False} if self.verb == "predict" else {}
        if self.verb in ("validate", "test"):
            kwargs["verbose"] = False  # the Narrator's table is the one to read
        path = str(self.checkpoint_path) if self.checkpoint_path else None
        try:
            getattr(self.trainer, self.verb)(self.model, datamodule=self.datamodule, ckpt_path=path, **kwargs)
        except MisconfigurationException as error:
            raise ValueError(trainer_mistake(error)) from error

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint of another model or vocabulary."""
        if self.checkpoint_path:
            check_fits(self.checkpoint, self.checkpoint_path, self.model, self.datamodule)
            if self.verb == "fit":
                check_optimizer(self.checkpoint, self.checkpoint_path, self.config_init["optim"])


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def quieten() -> None:
    """Leave what libraries log to their warnings, and drop the warnings that tell nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)


def run(verb: str, args: list[str]) -> int:
    """Carry out fit, validate, test or predict with the options `args`; returns the exit code."""
    quieten()
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2, FSDP2.__doc__)
    refuse_linked(args)
    early = options_before_parsing(args)
    path = find_checkpoint(early["ckpt_path"], early.get("run_dir")) if early.get("ckpt_path") else None
    checkpoint = read_checkpoint(path) if path else {}
    if path:
        args = [f"--config={configuration_of(path, checkpoint)}", *args]
    elif verb != "fit":
        raise UsageError(f"{verb} needs a trained model: --ckpt_path FILE, last, or best")
    with explained(f"python -m app {verb} --help", known_names()):
        cli = CLI(verb, args, path, checkpoint)
    try:
        cli.start()
    except RunStopped as stop:
        say(f"stopped; go on with `python -m app fit --ckpt_path {stop.checkpoint}`")
        return 128 + stop.signum
    return 0
