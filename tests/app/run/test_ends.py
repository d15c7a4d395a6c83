"""The end of a run is on the disk, however it ends, and what is printed of it is there."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from app.run.checkpoints import read_checkpoint
from app.study.processes import stages
from app.study.study import Planned
from tests.app.run.test_resume import assert_same_run
from tests.app.test_cli import assert_refused, call, files

EARLY = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping --trainer.callbacks.monitor val/loss "
    "--trainer.callbacks.stopping_threshold 100 --trainer.val_check_interval 5"
)
ATTACK = "--trainer.callbacks+=tests.app.run.attacks"


@pytest.fixture
def tiny(tiny_text, tmp_path, monkeypatch):
    """A fit of half a second, with 140 batches an epoch of the whole text."""
    monkeypatch.chdir(tmp_path)
    return (
        f"fit --model Transformer --model.d_model 8 --model.num_heads 2 --data CharText --data.corpus {tiny_text} "
        "--data.seq_len 16 --data.batch_size 4 --trainer.accelerator cpu --samples.max_new_tokens 0 "
        "--trainer.limit_val_batches 2 --optim.warmup_steps 2 --run_dir runs/x"
    )


def last_of(folder="runs/x"):
    return Path(folder) / "checkpoints/last.ckpt"


def record_of(folder="runs/x"):
    return json.loads((Path(folder) / "record.json").read_text())


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ("--trainer.max_steps 3", 3),
        ("--trainer.max_epochs 1 --trainer.limit_train_batches 7", 7),
        ("--trainer.max_epochs 1 --trainer.limit_train_batches 7 --trainer.accumulate_grad_batches 4", 2),
        ("--trainer.max_epochs 2 --trainer.max_steps -1 --trainer.limit_train_batches 5", 10),
        (EARLY, 5),
        (f"{EARLY} --trainer.accumulate_grad_batches 2", 3),  # after the step that the fifth batch belongs to
        ("--trainer.max_time 00:00:00:00", 1),
        ("--trainer.max_time 00:00:00:00 --trainer.max_steps -1 --trainer.accumulate_grad_batches 3", 1),
    ],
)
def test_however_a_run_ends_its_end_is_there(tiny, options, step):
    code, out, err = call(f"{tiny} {options}")
    assert (code, err) == (0, "")
    assert read_checkpoint(last_of())["global_step"] == record_of()["step"] == step
    assert record_of()["status"] == "finished"
    assert "runs/x has checkpoints/last.ckpt, " in out
    assert ("checkpoints/best.ckpt" in out) == Path("runs/x/checkpoints/best.ckpt").exists()
    assert call("validate --ckpt_path last --run_dir runs/x").code == 0


def test_a_limit_of_time_is_one_of_each_call_and_needs_no_number_of_steps(tiny):
    endless = f"{tiny} --trainer.max_steps -1 --trainer.max_time 00:00:00:00 --optim.schedule wsd"
    assert "unlimited steps" in call(endless).out
    for step in (2, 3, 4):
        code, out, err = call("fit --ckpt_path last --run_dir runs/x")
        assert (code, err) == (0, "")
        assert f"--trainer.max_time 00:00:00:00 is over at step {step}" in out
        assert re.search(r"done in [0-9] s;", out)
    last = read_checkpoint(last_of())
    assert last["global_step"] == 4
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 3e-3  # nothing is known to be over


def test_accumulation_is_not_cut_and_a_schedule_knows_its_end(tiny):
    """Eight batches a step, all of them, over the ends of what is called an epoch."""
    options = "--trainer.accumulate_grad_batches 8 --trainer.max_epochs 2 --trainer.limit_train_batches 20"
    assert call(f"{tiny} {options} --trainer.max_steps -1").code == 0
    assert (record_of()["step"], record_of()["max_steps"], record_of()["tokens"]) == (5, 5, 5 * 8 * 4 * 16)
    (group, *_) = read_checkpoint(last_of())["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.1 * 3e-3)  # where a cosine ends
    config = yaml.safe_load(Path("runs/x/config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (2, -1)  # as they were typed


def test_a_run_goes_on_by_epochs(tiny):
    epochs = f"{tiny} --optim.schedule constant --trainer.max_steps -1 --trainer.limit_train_batches 5"
    assert call(f"{epochs} --trainer.max_epochs 1").code == 0
    assert call("fit --ckpt_path last --run_dir runs/x --trainer.max_epochs 3").code == 0
    assert call(f"{epochs} --trainer.max_epochs 3 --run_dir runs/whole").code == 0
    assert_same_run(last_of(), last_of("runs/whole"))
    assert read_checkpoint(last_of())["global_step"] == 15


def test_epochs_that_are_cut_by_the_default_number_of_steps_are_told(tiny):
    out = call(f"{tiny} --trainer.max_epochs 900 --trainer.max_steps 2").out
    assert "--trainer.max_steps 2 comes before the end of --trainer.max_epochs 900; --trainer.max_steps -1" in out


def plain(record):
    """Without what two runs need not share."""
    history = [{key: value for key, value in point.items() if key != "seconds"} for point in record["history"]]
    return {key: record[key] for key in ("status", "step", "tokens", "flops", "growth_events")} | {"history": history}


def test_a_run_killed_after_its_last_checkpoint_is_finished_by_a_resume(tiny):
    options = "--trainer.max_steps 6 --trainer.val_check_interval 3 --trainer.log_every_n_steps 2"
    assert call(f"{tiny} {options} {ATTACK}.Kill --trainer.callbacks.step 6").code == 0
    assert record_of("runs/x-killed")["status"] == "running"
    killed = last_of("runs/x-killed").read_bytes()
    code, out, err = call(f"fit --ckpt_path {last_of('runs/x-killed')}")
    assert (code, err) == (0, "")
    assert "resumed at step 6" in out
    assert re.search(r"done in [0-9] s;", out)  # by the clock of this process
    assert plain(record_of("runs/x-killed")) == plain(record_of())
    assert last_of("runs/x-killed").read_bytes() == killed
    finished = files(Path("runs"))
    code, out, err = call(f"fit --ckpt_path {last_of('runs/x-killed')}")
    assert (code, err) == (0, "")
    assert out == "runs/x-killed is finished; to go on, give more --trainer.max_steps\n"
    assert files(Path("runs")) == finished
    assert_refused(call(f"fit --ckpt_path {last_of()} --trainer.max_steps 5"), "--trainer.max_steps 5", "step 6")


def test_a_study_finishes_a_run_that_was_killed_after_its_last_checkpoint(tiny):
    fit = f"{tiny} --trainer.max_steps 4".replace(" --run_dir runs/x", "")
    assert call(f"{fit} --run_dir runs/x {ATTACK}.Kill --trainer.callbacks.step 4").code == 0
    run, folder = Planned("x-killed", {}, fit.split()[1:], test=False), Path("runs/x-killed")
    (command,) = stages(run, folder)
    assert call(" ".join(command)).code == 0
    assert stages(run, folder) == []


def test_a_run_that_was_stopped_early_stays_so(tiny):
    """Whoever killed it, it must not train on where the undisturbed run has ended."""
    assert call(f"{tiny} {EARLY} {ATTACK}.Kill --trainer.callbacks.step 5").code == 0
    code, out, err = call(f"fit --ckpt_path {last_of('runs/x-killed')}")
    assert (code, err) == (0, "")
    assert "EarlyStopping has ended this run already; --trainer.callbacks null lets it go on" in out
    assert plain(record_of("runs/x-killed")) == plain(record_of())
    goes_on = f"fit --ckpt_path {last_of()} --trainer.callbacks null --trainer.max_steps 7"
    assert call(goes_on).code == 0
    assert read_checkpoint(last_of())["global_step"] == 7


@pytest.mark.parametrize("interval", [5, 100])  # a validation is due after the poisoned step, or a save alone
def test_weights_that_are_not_finite_are_neither_saved_nor_measured(tiny, interval):
    poison = f"{ATTACK}.Poison --trainer.callbacks.step 10 --checkpoints.every_n_steps 5"
    outcome = call(f"{tiny} --trainer.max_steps 20 --trainer.val_check_interval {interval} {poison}")
    assert_refused(outcome, "a weight is not finite after step 10", "runs/x/checkpoints/last.ckpt")
    left = read_checkpoint(last_of())
    assert left["global_step"] == 5
    assert all(torch.isfinite(value).all() for value in left["state_dict"].values())
    assert record_of()["status"].startswith("failed: a weight is not finite")


def test_a_validation_by_the_clock_waits_for_the_end_of_an_accumulation(tiny):
    options = "--trainer.val_check_interval 00:00:00:00 --trainer.accumulate_grad_batches 3 --trainer.max_steps 2"
    assert call(f"{tiny} {options}").code == 0
    best = read_checkpoint(Path("runs/x/checkpoints/best.ckpt"))
    assert best["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] % 3 == 0
    assert [point["step"] for point in record_of()["history"] if "val/loss" in point] == [1, 2]
