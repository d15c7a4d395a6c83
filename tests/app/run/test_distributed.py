"""Two processes on the CPU: the same run as one, through growths, interruptions and sharding."""

import re
import shutil
from functools import partialmethod
from typing import NamedTuple

import pytest
import torch
from torch import nn

from app.run.checkpoints import read_checkpoint
from app.run.grow import grow
from tests.app.forked import ERRORS, OUTPUT, begin, begin_ranks, end
from tests.app.run.test_resume import assert_equal, assert_same_run
from tests.callbacks.test_callbacks import scalars

MODEL = "--model TokenFormer --model.d_model 16 --model.num_heads 2"
SIZES = "--model.num_param_tokens 4 --model.num_ffn_param_tokens 8"
DATA = "--data CharText --data.seq_len 16 --data.batch_size 4"
TRAINER = "--trainer.accelerator cpu --trainer.max_steps 12 --trainer.val_check_interval 5 --samples.max_new_tokens 5"
ROWS = "--growth.num_param_tokens [6,9] --growth.num_ffn_param_tokens [8,16]"
GROWTH = f"--growth.steps [4,8] {ROWS} --growth.num_layers [1,2]"
DDP = "--trainer.devices 2 --trainer.strategy ddp --trainer.callbacks+=tests.app.run.rank_checks.SaveEachRank"
FSDP = "--trainer.devices 2 --trainer.strategy fsdp2"
ALONE = "--trainer.devices 1 --trainer.strategy auto"


class Printed(NamedTuple):
    """What all processes of a command printed."""

    out: str
    err: str


@pytest.fixture(scope="module")
def fit(tiny_text, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("distributed")

    def run(options, *, expect=0, ckpt=None, model=f"{MODEL} {SIZES}"):
        """Carry out the fit in as many processes as it has devices; what they printed, and what on standard error."""
        start = f"--ckpt_path {ckpt}" if ckpt else f"{model} {DATA} --data.corpus {tiny_text} {TRAINER}"
        devices = re.search(r"devices (\d)", options)
        for name in (OUTPUT, ERRORS):
            (cwd / name).unlink(missing_ok=True)
        number = int(devices.group(1)) if devices else 1
        line = f"fit {start} {options}"
        codes = list(map(end, begin_ranks(line, cwd, number) if number > 1 else [begin(line, cwd)]))
        printed = Printed(*((cwd / name).read_text(encoding="utf-8") for name in (OUTPUT, ERRORS)))
        assert codes == [expect] * number, printed
        return printed

    run.cwd = cwd
    return run


def last(fit, name):
    return fit.cwd / name / "checkpoints" / "last.ckpt"


def stopper(step):
    return f"--trainer.callbacks+=tests.app.run.rank_checks.StopOneRank --trainer.callbacks.step={step}"


@pytest.fixture(scope="module")
def whole(fit):
    fit("--run_dir whole")
    return last(fit, "whole")


@pytest.fixture(scope="module")
def two_processes(fit):
    printed = fit(f"{GROWTH} {DDP} --run_dir two")
    assert printed.out.count("grown before step 5") == 1  # told once, not by every process
    assert printed.err == ""
    return last(fit, "two")


def test_ranks_stay_bit_identical_through_two_growths(fit, two_processes):
    ranks = [torch.load(fit.cwd / "two" / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    assert ranks[0]["model"]["layers.0.ffn.key_param_tokens"].shape[0] == 16
    assert_equal(*ranks)


@pytest.fixture(scope="module")
def one_process(fit):
    fit(f"{GROWTH} --run_dir one")
    return last(fit, "one")


def test_two_processes_are_within_rounding_of_one_at_the_same_global_batch(fit, one_process, two_processes):
    assert_close_runs(two_processes, one_process)
    assert_same_curves(fit.cwd / "one", fit.cwd / "two")


def assert_same_curves(one, two):
    """Tokens, FLOPs and parameters on the axes are those of all processes; each point is there once."""
    ours, theirs = (counted(scalars(folder)) for folder in (one, two))
    assert ours.keys() == theirs.keys() != set()
    for tag, points in ours.items():
        assert [place for place, _ in points] == [place for place, _ in theirs[tag]]
        assert [value for _, value in points] == pytest.approx([value for _, value in theirs[tag]], abs=2e-5)


def counted(curves):
    """Of a run's curves those against tokens, FLOPs and parameters."""
    units = ("by_tokens/", "by_megaflops/", "by_parameters/")
    return {tag: points for tag, points in curves.items() if tag.removeprefix("growth_marks/").startswith(units)}


@pytest.mark.parametrize("stop", [4, 6])
def test_one_process_is_told_to_stop_and_both_resume_bit_for_bit(fit, two_processes, stop):
    printed = fit(f"{GROWTH} {DDP} {stopper(stop)} --run_dir cut{stop}", expect=143)
    assert "fit --ckpt_path" in printed.out
    assert read_checkpoint(last(fit, f"cut{stop}"))["global_step"] == stop
    fit(DDP, ckpt=last(fit, f"cut{stop}"))
    assert_same_run(last(fit, f"cut{stop}"), two_processes)
    assert_same_curves(fit.cwd / "two", fit.cwd / f"cut{stop}")


def assert_close_runs(a, b, atol=1e-6):
    """Weights, lineage and the moments of each parameter, whatever number the strategy gave it, are within rounding."""
    a, b = read_checkpoint(a), read_checkpoint(b)
    changes = [
        [[event.pop("logit_change"), *event.pop("relative_change")] for event in saved["greenhouse"]["growth_events"]]
        for saved in (a, b)
    ]
    torch.testing.assert_close(*changes, rtol=0, atol=1e-5)
    assert a["greenhouse"] == b["greenhouse"]  # tokens, FLOPs, lineage
    moments = [
        [saved["state"][key] for group in saved["param_groups"] for key in group["params"]]
        for saved in (a["optimizer_states"][0], b["optimizer_states"][0])
    ]
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=atol)
    torch.testing.assert_close(*moments, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def sharded_growth(fit):
    printed = fit(f"{GROWTH} {FSDP} --run_dir sharded_two")
    assert printed.out.count("grown before step 5") == 1
    assert printed.err == ""
    return last(fit, "sharded_two")


def test_fsdp2_grows_twice_as_one_process_does(fit, one_process, sharded_growth):
    assert_close_runs(sharded_growth, one_process)
    assert_same_curves(fit.cwd / "one", fit.cwd / "sharded_two")


def test_fsdp2_goes_on_bit_for_bit_at_and_between_growths(fit, one_process, sharded_growth):
    """Twice in a row; the file from between the growths goes on under ddp, too."""
    fit(f"{GROWTH} {FSDP} {stopper(4)} --run_dir on_shards", expect=143)
    fit(f"{FSDP} {stopper(6)}", ckpt=last(fit, "on_shards"), expect=143)
    assert read_checkpoint(last(fit, "on_shards"))["global_step"] == 6
    shutil.copytree(fit.cwd / "on_shards", fit.cwd / "on_ddp")
    fit(FSDP, ckpt=last(fit, "on_shards"))
    assert_same_run(last(fit, "on_shards"), sharded_growth)
    fit(DDP, ckpt=last(fit, "on_ddp"))
    assert_close_runs(last(fit, "on_ddp"), one_process)


FIRST_STEP = "--growth.steps [1] --growth.factor [3] --growth.num_layers [2] --trainer.max_steps 3"


def test_fsdp2_grows_compiled_models_between_accumulations(fit, monkeypatch):
    options = f"{FIRST_STEP} --trainer.accumulate_grad_batches 2 --trainer.gradient_clip_val 0.1"
    fit(f"{options} --run_dir eager")
    quick = partialmethod(nn.Module.compile, backend="eager")  # all of compiling but the making of machine code
    monkeypatch.setattr(nn.Module, "compile", quick)
    fit(f"{options} --model.compile true {FSDP} --run_dir compiled")
    assert_close_runs(last(fit, "compiled"), last(fit, "eager"))


def test_fsdp2_grows_in_half_precision_as_ddp_does(fit):
    options = f"{FIRST_STEP} --trainer.precision bf16-mixed --model.tie_embeddings true --growth.rewarm_steps 2"
    fit(f"{options} {DDP} --run_dir half_ddp")
    fit(f"{options} {FSDP} --run_dir half_fsdp")
    assert_close_runs(last(fit, "half_fsdp"), last(fit, "half_ddp"))


@pytest.fixture(scope="module")
def cut_at_4(fit):
    fit(f"{stopper(4)} --run_dir cut", expect=143)
    return last(fit, "cut")


def test_fsdp2_goes_on_from_one_process(fit, whole, cut_at_4):
    fit(f"{FSDP} --run_dir on_two", ckpt=cut_at_4)
    assert_close_runs(last(fit, "on_two"), whole)


def test_a_file_that_was_grown_goes_on_under_fsdp2_and_then_in_one_process(fit, cut_at_4):
    """Half-way through the new rows' re-warm, too: their updates are scaled shard by shard."""
    size = 7  # rows that do not split evenly
    fit(f"--growth.steps [4] --growth.num_param_tokens [{size}] --growth.rewarm_steps 6 --run_dir grew")
    shutil.copytree(fit.cwd / "cut", fit.cwd / "grown")
    last(fit, "grown").unlink()
    grow(cut_at_4, last(fit, "grown"), rewarm_steps=6, num_param_tokens=size)
    fit(f"{FSDP} {stopper(8)}", ckpt=last(fit, "grown"), expect=143)
    assert read_checkpoint(last(fit, "grown"))["global_step"] == 8
    fit(ALONE, ckpt=last(fit, "grown"))
    assert_close_runs(last(fit, "grown"), last(fit, "grew"))


def test_trajectory_memory_trains_on_two_processes_and_sharded(fit):
    model = "--model TrajectoryLM --model.d_model 16"
    fit(f"{DDP} --run_dir memory_two", model=model)
    assert_equal(*(torch.load(fit.cwd / "memory_two" / f"rank{r}.pt", weights_only=True) for r in (0, 1)))
    fit(f"{FSDP} --run_dir memory_sharded", model=model)
    two, sharded = read_checkpoint(last(fit, "memory_two")), read_checkpoint(last(fit, "memory_sharded"))
    for name, value in two["state_dict"].items():
        torch.testing.assert_close(sharded["state_dict"][name], value, rtol=0, atol=1e-6)


def test_a_batch_that_does_not_split_is_refused(fit):
    printed = fit("--trainer.devices 3 --trainer.strategy ddp --run_dir odd", expect=2)
    assert printed.err.count("error:") == 1
    assert "--data.batch_size 4 does not split over 3 processes" in printed.err


def test_muon_is_one_optimizer_over_two_processes_and_refuses_sharding(fit):
    muon = "--optim.optimizer muon"
    fit(f"{muon} {GROWTH} {DDP} --run_dir muon_two")
    assert_equal(*(torch.load(fit.cwd / "muon_two" / f"rank{r}.pt", weights_only=True) for r in (0, 1)))
    fit(f"{muon} {GROWTH} --run_dir muon_one")
    one, two = read_checkpoint(last(fit, "muon_one")), read_checkpoint(last(fit, "muon_two"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=1e-3)  # its products are bfloat16
    printed = fit(f"{muon} {FSDP} --run_dir muon_sharded", expect=2)
    assert "--optim.optimizer muon" in printed.err
    assert not (fit.cwd / "muon_sharded").exists()
