"""Lightning still has the private names that we use, and still means the same by them."""

import ast
import os
import signal
from pathlib import Path
from unittest import mock

import lightning as L
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.utils.data import DataLoader

from callbacks import lightning_internals
from callbacks.lightning_internals import (
    ProgressBar,
    completes_step,
    leave_signals_alone,
    use_our_loops,
    use_run_folder,
    validation_is_due,
    watch_launched_by,
)


def fit_loop():
    return L.Trainer(logger=False, barebones=True).fit_loop


OWNERS = {  # of each private name: what has it, made as Lightning makes it
    "_batches_that_stepped": lambda: fit_loop().epoch_loop,
    "_broadcast_sigterm_tensor": lambda: fit_loop().epoch_loop,
    "_can_stop_early": fit_loop,
    "_data_fetcher": fit_loop,
    "_data_parallel_size": ModelParallelStrategy,
    "_default_root_dir": lambda: L.Trainer(logger=False, barebones=True),
    "_get_train_description": RichProgressBar,
    "_launch_process_observer": lambda: subprocess_script,
    "_should_accumulate": fit_loop,
    "_should_check_val_fx": lambda: fit_loop().epoch_loop,
    "_signal_connector": lambda: L.Trainer(logger=False, barebones=True),
}


@pytest.mark.parametrize("name", OWNERS)
def test_lightning_still_has(name):
    owner = OWNERS[name]()
    assert hasattr(owner, name), (
        f"Lightning {L.__version__} no longer has {type(owner).__name__}.{name}; "
        "callbacks/lightning_internals.py needs another way to what it gives"
    )


def test_each_private_name_of_lightning_is_looked_for_above():
    tree = ast.parse(Path(lightning_internals.__file__).read_text(encoding="utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for name in read | defined if name.startswith("_") and not name.endswith("__")} == OWNERS.keys()


class Story(L.Callback):
    """Writes down, in order, batches that complete a step (S) or do not (s), those before a validation, validations."""

    def __init__(self):
        self.words = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.words.append(("S" if completes_step(trainer) else "s") + "!" * validation_is_due(trainer))

    def on_validation_start(self, trainer, pl_module):
        self.words.append("V")


def tell(options, *callbacks):
    """The story of six batches."""
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=6, accelerator="cpu", logger=False, enable_checkpointing=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[told := Story(), *callbacks], **{"limit_val_batches": 1} | options,
    )  # fmt: skip
    data = DataLoader(RandomDataset(32, 6))
    trainer.fit(BoringModel(), data, data)
    return " ".join(told.words)


@pytest.mark.parametrize(
    ("options", "story"),
    [
        ({"accumulate_grad_batches": 2, "val_check_interval": 4}, "s S s S! V s S"),
        ({"accumulate_grad_batches": 4, "val_check_interval": 3}, "s s s! V S s S! V"),
        ({"limit_val_batches": 0, "val_check_interval": 2}, "S S S S S S"),
    ],
    ids=["accumulation", "middle of an accumulation", "no validation"],
)
def test_steps_and_validations_are_foreseen(options, story):
    assert tell(options) == story, "Lightning means something else by _should_accumulate or _should_check_val_fx"


class OurLoops(L.Callback):
    """Does what Checkpoints does."""

    def setup(self, trainer, pl_module, stage):
        use_our_loops(trainer, lambda: None)


@pytest.mark.parametrize(
    ("options", "story"),
    [
        ({"accumulate_grad_batches": 4, "val_check_interval": 3}, "s s s S! V s S! V"),
        ({"accumulate_grad_batches": 2, "val_check_interval": "00:00:00:00"}, "s S! V s S! V s S! V"),
    ],
    ids=["batches", "time"],
)
def test_our_loops_validate_between_steps_only(options, story):
    assert tell(options, OurLoops()) == story


def test_what_belongs_to_a_batch_is_logged_before_we_look_at_it():
    class Look(L.Callback):
        def setup(self, trainer, pl_module, stage):
            use_our_loops(trainer, lambda: seen.append(trainer.logged_metrics.get("batch")))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.log("batch", float(batch_idx))

    seen: list[float] = []
    tell({"log_every_n_steps": 1}, Look())
    assert seen == [0, 1, 2, 3, 4, 5], "Lightning logs a batch's metrics later than in _TrainingEpochLoop.advance"


def test_signals_are_left_to_us():
    class Look(L.Callback):
        def setup(self, trainer, pl_module, stage):
            leave_signals_alone(trainer)

        def on_train_start(self, trainer, pl_module):
            self.handler = signal.getsignal(signal.SIGTERM)

    tell({}, look := Look())
    assert look.handler is signal.getsignal(signal.SIGTERM), "Lightning no longer asks _signal_connector"


def test_launched_processes_are_watched_by_us(monkeypatch):
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    watched = []
    watch_launched_by(watched.append)
    launcher = subprocess_script._SubprocessScriptLauncher(LightningEnvironment(), num_processes=1, num_nodes=1)
    with mock.patch.dict(os.environ):  # which it changes
        launcher.launch(lambda: None)
    assert watched == [launcher.procs], "Lightning no longer calls _launch_process_observer"


def test_our_loops_begin_and_end_where_nothing_is_left():
    class Look(L.Callback):
        hooks: list[str] = []  # noqa: RUF012

        def on_train_start(self, *args):
            self.hooks.append("start")

        def on_train_end(self, *args):
            self.hooks.append("end")

    assert tell({"max_steps": 0, "val_check_interval": 3}, OurLoops(), Look()) == ""
    assert Look.hooks == ["start", "end"], "Lightning no longer asks FitLoop.skip"


def test_the_bar_counts_no_epochs():
    class Look(L.Callback):
        def on_train_end(self, trainer, pl_module):
            self.texts = {task.description for task in trainer.progress_bar_callback.progress.tasks}

    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        limit_val_batches=0, enable_model_summary=False, callbacks=[look := Look(), ProgressBar()],
    )  # fmt: skip
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 2)))
    assert {text.strip() for text in look.texts} == {"training"}, "Lightning no longer asks _get_train_description"


def test_processes_agree_on_a_folder_after_the_trainer_was_built(tmp_path):
    trainer = L.Trainer(logger=False, barebones=True, default_root_dir=tmp_path / "own")
    use_run_folder(trainer, tmp_path / "first")
    assert Path(trainer.default_root_dir) == tmp_path / "first", "Lightning reads default_root_dir from another place"
