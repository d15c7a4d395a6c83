"""fit, validate, test and predict: LightningCLI with our groups of options, run folders and checkpoints.

A checkpoint brings its own configuration: that of its run folder, or else its saved hyper-parameters, is read before
what the command line says, so that `test --ckpt_path FILE` needs nothing more and any option can still be changed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry

import datamodules  # noqa: F401 - their classes become choices of --data
import models  # noqa: F401 - and of --model
from app.cli.help import known_names
from app.cli.invocation import typed_arguments
from app.cli.mistakes import ParserError, UsageError, explained
from app.cli.options import with_dashes
from app.machine import announce_run_dir, announced_run_dir, float32_products, is_first_process
from app.run.checkpoints import check_training_state, check_weights, read_checkpoint
from app.run.checks import Trainer, check_groups, check_launched, check_trainer, explaining, whole_seed
from app.run.configuration import (
    check_fits,
    check_optimizer,
    configuration_of,
    refuse_linked,
    untold_by_configuration,
)
from app.run.folders import (
    AUTO,
    RUNS,
    find_checkpoint,
    held,
    is_finished,
    is_run,
    is_run_of,
    new_run_folder,
    options_before_parsing,
    run_dir_of,
    same_run_folder,
    temporary_folder,
    writable,
)
from app.run.length import check_steps, in_steps, steps_of_epochs
from app.run.placement import RunFolder
from app.stops import end_with_first_process, lost_processes_told, watch_launched
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
    TensorBoard,
    Throughput,
    TimeLimit,
)
from callbacks.console import Bar, ModelSummary, say, tell
from callbacks.lightning_internals import watch_launched_by
from callbacks.record_file import last_checkpoint
from callbacks.sharding import FSDP2
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
WHOLE_SPLITS = [  # what a fit measured a part of, to be quick, is measured whole when it is asked for
    f"--trainer.{name}" for name in (
        "limit_val_batches=1.0", "limit_test_batches=1.0", "limit_predict_batches=1.0", "overfit_batches=0.0",
        "fast_dev_run=false",
    )
]  # fmt: skip
CALLBACK_GROUPS = {"growth": Growth, "samples": Samples, "checkpoints": Checkpoints}
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
    r"You have overridden `on_before_batch_transfer` in `LightningModule`.*",
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

    def __init__(
        self, verb: str, args: list[str], path: Path | None, checkpoint: dict[str, Any], stack: ExitStack
    ) -> None:
        self.verb, self.arguments, self.checkpoint_path, self.checkpoint = verb, args, path, checkpoint
        self.stack = stack  # keeps the run folder until the verb is carried out
        self.is_finished = False
        super().__init__(
            model_class=LanguageModel,
            datamodule_class=TaskData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_class=Trainer,
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
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint: a file, a run folder, last, best, or auto."
        )
        parser.add_class_arguments(Optim, "optim")
        for group, callback in CALLBACK_GROUPS.items():
            parser.add_lightning_class_args(callback, group)
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=whole_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse values that would fail later without a word of the option."""
        super().parse_arguments(parser, with_dashes(args, parser))
        check_groups(self.config, ("trainer", "optim", *CALLBACK_GROUPS))
        check_trainer(self.config["trainer"], self.verb)

    def before_instantiate_classes(self) -> None:
        """Decide on the run folder, and look into it for the checkpoint where that is `auto`."""
        names = [self.config[key]["class_path"].rsplit(".", 1)[-1] for key in ("model", "data")]
        self.base = Path(self.config["run_dir"] or RUNS / "-".join(names))
        self.is_same_folder = self.config["ckpt_path"] == AUTO
        if self.is_same_folder and last_checkpoint(self.base).exists():
            self.checkpoint_path = last_checkpoint(self.base)
            self.checkpoint = read_checkpoint(self.checkpoint_path)
        self.config["ckpt_path"] = None  # the saved configuration describes the run, not how it was resumed

    def _folder_of_checkpoint(self) -> Path | None:
        """The folder that the run goes on in: that of its checkpoint, unless another is named among the options."""
        named = any(arg.partition("=")[0] == "--run_dir" for arg in self.arguments)
        folder = run_dir_of(self.checkpoint_path) if self.checkpoint_path else None
        return folder if folder and (not named or is_run_of(folder, self.base)) else None

    def _run_folder(self) -> AbstractContextManager[Path]:
        """The folder of the run: that of the checkpoint, or a new one."""
        goes_on = self._folder_of_checkpoint()
        if announced := announced_run_dir():
            return nullcontext(announced)
        if not is_first_process() or self.verb in ("validate", "test"):  # these make no folder
            return nullcontext(goes_on or self.base)
        if self.config_init["trainer"]["fast_dev_run"]:
            return temporary_folder()
        if self.is_same_folder:
            return same_run_folder(self.base)
        if goes_on:
            return held(goes_on, "--run_dir") if self.verb == "fit" else nullcontext(writable(goes_on))
        return new_run_folder(self.base)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with our logger, checkpoint files and callbacks beside what the user configured."""
        self.model.optim = self.config_init["optim"]
        config = self._length() | kwargs
        self.run_dir = self.stack.enter_context(self._run_folder())
        config["default_root_dir"] = str(self.run_dir)
        if self.verb == "validate" or (self.verb == "test" and not is_run(self.run_dir)):
            config["logger"] = False  # measuring leaves no trace, but for a run's own test
        elif config["logger"] in (None, True):
            config["logger"] = TensorBoard(self.run_dir, name="", version="", default_hp_metric=False)
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        settled = RunFolder(self.run_dir, self.parser.dump(self.config, skip_none=False))
        with explaining(self.config_init["trainer"]):
            config["callbacks"] = [settled, *_as_list(config["callbacks"]), *self._callbacks(config)]
            trainer = super().instantiate_trainer(**config)
        check_launched(trainer)
        return trainer

    def _length(self) -> dict[str, Any]:
        """The trainer's options, counted in steps; ValueError if they leave nothing to do after the checkpoint."""
        options = dict(self.config_init["trainer"])
        if self.verb != "fit" or options["fast_dev_run"]:
            return options
        batches, done = len(self.datamodule.train_stream()), int(self.checkpoint.get("global_step", 0))
        counted = in_steps(options, batches, TRAINER_DEFAULTS["val_check_interval"])
        steps, folder, path = counted["max_steps"], self._folder_of_checkpoint(), self.checkpoint_path
        is_last = bool(folder and path and path.resolve() == last_checkpoint(folder).resolve())
        can_repeat = steps == done or (self.is_same_folder and 0 < steps < done)
        self.is_finished = bool(folder and is_last and can_repeat and is_finished(folder))
        if not self.is_finished:
            check_steps(options, steps, done, finishes=is_last)
        if (steps_of_epochs(options, batches) or 0) > steps:
            tell(f"--trainer.max_steps {steps} comes before the end of --trainer.max_epochs {options['max_epochs']}; "
                "--trainer.max_steps -1 trains all of them")  # fmt: skip
        return counted

    def _callbacks(self, config: dict[str, Any]) -> list[Any]:
        """All but those that are groups of options, which Lightning adds behind them."""
        limit, config["max_time"] = config["max_time"], None
        watching = [Throughput(), ScalingCurves(), Record(typed_arguments()), Narrator()]
        rich = []
        for name, callback in (
            ("enable_model_summary", ModelSummary(max_depth=2)),
            ("enable_progress_bar", Bar()),
        ):
            if config[name] is None:  # lines of text instead of a bar that nobody sees
                config[name] = sys.stdout.isatty()
            rich += [callback] if config[name] else []
        return [*watching, *rich, Predictions(), *([TimeLimit(limit)] if limit else [])]

    def start(self) -> None:
        """Run the verb, unless it is a fit that is safe to repeat and was finished before."""
        if self.is_finished:
            tell(f"{self.run_dir} is finished; to go on, give more --trainer.max_steps")
            return
        announce_run_dir(self.run_dir)
        kwargs = {"return_predictions": False} if self.verb == "predict" else {}
        if self.verb in ("validate", "test"):
            kwargs["verbose"] = False  # the Narrator's table is the one to read
            say(f"{self.checkpoint_path}, step {self.checkpoint['global_step']:,}")
        path = str(self.checkpoint_path) if self.checkpoint_path else None
        with (
            explaining(self.config_init["trainer"]),
            lost_processes_told(self._how_to_go_on),
            float32_products(self.trainer.matmul_precision),
        ):
            getattr(self.trainer, self.verb)(self.model, datamodule=self.datamodule, ckpt_path=path, **kwargs)

    def _how_to_go_on(self) -> str:
        last = last_checkpoint(self.run_dir)
        return f"go on with `python -m app fit --ckpt_path {last}`" if last.exists() else "there is no checkpoint yet"

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint that will not do; size the model as the checkpoint's, while its weights are whole."""
        if not self.checkpoint_path:
            return
        source = f"--ckpt_path {self.checkpoint_path}"
        check_fits(self.checkpoint, self.checkpoint_path, self.model, self.datamodule)
        check_weights(self.checkpoint, type(self.model), source)
        self.model.load_state_dict(self.checkpoint["state_dict"])
        if self.verb == "fit":
            check_optimizer(self.checkpoint, self.checkpoint_path, self.config_init["optim"])
            check_training_state(self.checkpoint, self.model, source)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def prepare_lightning() -> None:
    """Add our strategy to Lightning's, look after launched processes, leave out what is logged or told for nothing."""
    watch_launched_by(watch_launched)
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2, FSDP2.__doc__)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)


def run(verb: str, args: list[str]) -> int:
    """Carry out fit, validate, test or predict with the options `args`; returns the exit code."""
    end_with_first_process()
    prepare_lightning()
    refuse_linked(args)
    early = options_before_parsing(args)
    wish = early.get("ckpt_path")
    if not wish and verb != "fit":
        raise UsageError(f"{verb} needs a trained model: --ckpt_path FILE, last, or best")
    if wish == AUTO and verb != "fit":
        raise UsageError(f"--ckpt_path {AUTO} is for fit; {verb} needs a trained model: FILE, last, or best")
    path = find_checkpoint(wish, early.get("run_dir")) if wish and wish != AUTO else None
    checkpoint = read_checkpoint(path) if path else {}
    if path:
        whole = [] if verb == "fit" else WHOLE_SPLITS
        args = [f"--config={configuration_of(path, checkpoint)}", *untold_by_configuration(checkpoint), *whole, *args]
    with ExitStack() as stack:
        with explained(f"python -m app {verb} --help", known_names):
            cli = CLI(verb, args, path, checkpoint, stack)
        try:
            cli.start()
        except RunStopped as stop:
            tell(f"stopped; go on with `python -m app fit --ckpt_path {stop.checkpoint}`")
            return 128 + stop.signum
    return 0
