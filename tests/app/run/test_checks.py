"""Options of Lightning's Trainer: each is honoured or refused by name, and what Lightning says names the option."""

import inspect
import re
from io import StringIO
from pathlib import Path
from typing import get_args, get_type_hints

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from app.run.checks import ABOVE_0, FROM, LIMITS, NEVER, NOT_HERE, Trainer, check_launched, explaining
from callbacks.record_file import read_record
from tests.app.test_cli import assert_refused, call, tiny  # noqa: F401 - a fixture among them

HONOURED = {  # by Lightning, or by us, whatever their value; Lightning itself refuses values that make no sense
    "accelerator", "benchmark", "callbacks", "detect_anomaly", "deterministic", "devices", "enable_autolog_hparams",
    "enable_model_summary", "enable_progress_bar", "fast_dev_run", "gradient_clip_algorithm", "inference_mode",
    "limit_predict_batches", "limit_test_batches", "limit_val_batches", "logger", "max_steps", "max_time", "num_nodes",
    "overfit_batches", "plugins", "precision", "profiler", "reload_dataloaders_every_n_epochs", "strategy",
    "sync_batchnorm", "use_distributed_sampler",
}  # fmt: skip


OTHERS = {"options", "return", "matmul_precision"}  # of our Trainer's constructor, beside amounts of batches


class Terminal(StringIO):
    """Standard output where a person looks on."""

    def isatty(self) -> bool:
        return True


def test_every_option_of_the_trainer_has_been_judged():
    refused = FROM.keys() | ABOVE_0.keys() | NOT_HERE.keys() | NEVER.keys() | {name for pair in LIMITS for name in pair}
    assert refused | HONOURED == set(inspect.signature(L.Trainer).parameters)


def test_one_is_one_batch_whatever_order_of_types_another_library_asked_for():
    """Of `Optional[Union[float, int]]` Python's typing makes the other order, too, if that was asked for first."""
    lightnings, ours = get_type_hints(L.Trainer.__init__), get_type_hints(Trainer.__init__)
    amounts = [name for name, kind in lightnings.items() if {int, float} <= set(get_args(kind))]
    assert {*amounts} - {"gradient_clip_val"} == ours.keys() - OTHERS  # a norm of 1 is one of 1.0
    assert all(get_args(ours[name])[0] is int for name in ours.keys() - OTHERS)


@pytest.mark.parametrize(("option", "shown"), [("enable_progress_bar", "training"), ("enable_model_summary", "Params")])
@pytest.mark.parametrize(("out", "default"), [(StringIO, False), (Terminal, True)])
def test_bar_and_summary_are_shown_to_whom_it_may_concern(tiny, tmp_path, monkeypatch, option, shown, out, default):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    quick = f"{tiny} --trainer.max_steps 1 --trainer.logger false"
    assert (shown in call(quick, out()).out) is default
    assert (shown in call(f"{quick} --trainer.{option} {str(not default).lower()}", out()).out) is not default


def test_who_asks_for_quiet_reads_results_warnings_and_errors(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    fit = call(f"{tiny} --quiet --run_dir runs/x --trainer.max_epochs 1000", Terminal())
    warning = r"--trainer.max_steps 12 comes before the end of --trainer.max_epochs 1000; .*"
    assert re.fullmatch(rf"{warning}\nbest val/loss [\d.]+: runs/x/checkpoints/best.ckpt\n", fit.out)
    measured = call("validate --quiet --ckpt_path best --trainer.limit_val_batches 1").out.splitlines()
    assert "batches of the val split, a part of it" in measured[0]
    assert measured[1].strip() == "val split"
    assert_refused(call(f"{tiny} --quiet --run_dir runs/x --trainer.max_stepz 1"), "--trainer.max_stepz")
    assert "run folder: runs/y" in call(f"{tiny} --run_dir runs/y --trainer.max_steps 1").out


def test_products_in_float32_are_as_precise_as_was_asked_for_and_only_there(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    quick = f"{tiny} --trainer.max_steps 1 --trainer.logger false --run_dir runs"
    assert_refused(call(f"{quick}/x --trainer.matmul_precision tf32"), "--trainer.matmul_precision tf32", "'highest'")
    assert call(f"{quick}/asked --trainer.matmul_precision high").code == call(f"{quick}/usual").code == 0
    assert call("fit --ckpt_path runs/asked --trainer.max_steps 2").code == 0
    told = [read_record(Path(f"runs/{name}/record.json"))["matmul_precision"] for name in ("asked", "usual")]
    assert (told, torch.get_float32_matmul_precision()) == (["high", "highest"], "highest")


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_profile_lies_in_the_run_folder(tiny, tmp_path, monkeypatch, profiler):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert call(f"{tiny} --trainer.max_steps 2 --trainer.profiler {profiler} --run_dir runs/x").code == 0
    assert "run_training_batch" in Path("runs/x/fit-profile.txt").read_text(encoding="utf-8")


def test_a_profile_of_a_trial_stays_though_its_folder_does_not(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert call(f"{tiny} --trainer.fast_dev_run true --trainer.profiler simple").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fit-profile.txt"]


def test_a_metric_that_is_never_logged_is_told_as_a_mistake_when_it_is_looked_for(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    outcome = call(f"{tiny} --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/los")
    assert_refused(outcome, "--trainer.callbacks: ", "`val/los`", "`val/loss`")


def test_several_machines_are_waited_for_where_a_launcher_starts_them(monkeypatch):
    trainer = Trainer(num_nodes=2, accelerator="cpu", devices=1, logger=False)
    with pytest.raises(ValueError, match=r"--trainer.num_nodes 2: nothing starts"):
        check_launched(trainer)
    monkeypatch.setenv("NODE_RANK", "0")
    check_launched(trainer)


def raised_in_lightning() -> None:
    EarlyStopping("val/loss", mode="sideways")


def raised_here() -> None:
    raise TypeError("a mistake of ours about accelerator")


def test_what_lightning_says_names_the_option_and_faults_of_ours_pass():
    with pytest.raises(ValueError, match=r"^--trainer.callbacks: `mode` can be"), explaining({}):
        raised_in_lightning()
    with pytest.raises(TypeError, match="a mistake of ours"), explaining({}):
        raised_here()
    with (
        pytest.raises(ValueError, match=r"^--trainer.max_time soon: not a duration: Soon"),
        explaining({"max_time": "soon", "strategy": "auto"}),
    ):
        raise MisconfigurationException("not a duration: Soon")
    with pytest.raises(ValueError, match=r"^--trainer: something else"), explaining({}):
        raise MisconfigurationException("something\nelse")
