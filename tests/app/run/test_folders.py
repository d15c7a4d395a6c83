"""The run folder is the run: no two processes share one, and what a run needs to go on is in it, come what may."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from app.run.checkpoints import read_checkpoint
from app.run.folders import LOCK, find_checkpoint, held, new_run_folder, same_run_folder
from tests.app.forked import TIMEOUT, begin, end, tell, wait_for
from tests.app.run.test_resume import assert_same_run
from tests.app.test_cli import ROOT, SIZES, assert_refused, call, files
from tests.callbacks.test_callbacks import scalars

LAST = "checkpoints/last.ckpt"
GROWTH = "--growth.steps [3,8] --growth.num_param_tokens [6,9] --growth.rewarm_steps 2"


@pytest.fixture
def tiny(tiny_text, tmp_path, monkeypatch) -> str:
    """A fit of a second, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    data = f"--data CharText --data.corpus {tiny_text} --data.seq_len 16 --data.batch_size 4"
    trainer = (
        "--trainer.accelerator cpu --trainer.max_steps 6 --trainer.val_check_interval 5 --samples.max_new_tokens 0"
    )
    return f"fit --model TokenFormer {SIZES} {data} {trainer} --trainer.limit_val_batches 1"


def make_run(folder: Path, *checkpoints: str) -> None:
    """What a run leaves that has come as far as these checkpoints."""
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    (folder / "config.yaml").touch()
    for name in checkpoints:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / name).touch()


def succeed(line: str) -> str:
    """Carry a command out; returns what it said, for `generate` without how fast it was."""
    code, out, err = call(line)
    assert (code, re.sub(r"^prompt: .* a second\n", "", err)) == (0, "")
    return out


# Which folder ---------------------------------------------------------------------------------------------------------


RESERVE = """
import sys
from pathlib import Path
from app.run.folders import new_run_folder
print("ready", flush=True)
sys.stdin.readline()
with new_run_folder(Path("runs/a")) as folder:
    print(folder.name, flush=True)
    sys.stdin.readline()
"""


def test_processes_that_start_together_get_a_folder_each(tmp_path):
    together = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    assert [process.stdout.readline() for process in together] == ["ready\n"] * 6
    for process in together:
        process.stdin.write("\n")
        process.stdin.flush()
    names = {process.stdout.readline().strip() for process in together}
    for process in together:
        process.communicate("\n", timeout=TIMEOUT)
        assert process.returncode == 0
    assert names == {"a", *(f"a-{number}" for number in range(2, 7))}


def test_a_new_run_takes_an_empty_folder_and_no_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    (tmp_path / "a-2/mine").touch()
    with new_run_folder(tmp_path / "a") as first, new_run_folder(tmp_path / "a") as second:
        assert [first.name, second.name] == ["a", "a-3"]


@pytest.mark.parametrize("end", [ValueError("--option will not do"), SystemExit(143), KeyboardInterrupt()])
@pytest.mark.parametrize("folder_of", [new_run_folder, same_run_folder])
def test_a_run_that_ends_before_it_began_leaves_no_folder(tmp_path, folder_of, end):
    def fail():
        with folder_of(tmp_path / "a") as folder:
            (folder / "config.yaml").touch()
            raise end

    with pytest.raises(type(end)):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("end", "step", "stays"),
    [(ValueError("not finite"), 3, True), (ValueError("--option"), 0, False), (SystemExit(143), 3, False)],
)
def test_a_folder_without_a_checkpoint_stays_if_it_tells_how_training_failed(tmp_path, end, step, stays):
    def fail():
        with new_run_folder(tmp_path / "a") as folder:
            (folder / "record.json").write_text(json.dumps({"format": 1, "history": [], "step": step}))
            raise end

    with pytest.raises(type(end)):
        fail()
    assert (tmp_path / "a").exists() == stays


# Which checkpoint -----------------------------------------------------------------------------------------------------


def test_last_is_that_of_the_newest_run_and_no_other_is_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), "last.ckpt", "best.ckpt")
    assert find_checkpoint("last") == find_checkpoint("last", "runs/a") == Path("runs/a") / LAST
    make_run(Path("runs/a-2"))
    (Path("runs/a") / LAST).touch()  # the older run is still going on
    for run_dir in (None, "runs/a"):
        with pytest.raises(ValueError, match="--ckpt_path best: the newest run, runs/a-2, has no .* as runs/a/checkp"):
            find_checkpoint("best", run_dir)
    (Path("runs/a") / LOCK).write_text("resumed")
    assert find_checkpoint("last", "runs/a") == Path("runs/a") / LAST


def test_what_is_no_run_hides_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), "last.ckpt")
    Path("runs/study/runs/a").mkdir(parents=True)
    Path("runs/a-2").mkdir()
    (Path("runs/a-2") / LOCK).touch()  # killed before it began
    assert find_checkpoint("last") == Path("runs/a") / LAST


def test_a_run_folder_means_its_last_checkpoint(tmp_path):
    make_run(tmp_path / "a", "last.ckpt")
    make_run(tmp_path / "b", "best.ckpt")
    assert find_checkpoint(str(tmp_path / "a")) == tmp_path / "a" / LAST
    with pytest.raises(ValueError, match="CKPT .*/b: there is no .*/b/checkpoints/last.ckpt yet"):
        find_checkpoint(str(tmp_path / "b"), option="CKPT")


def test_every_verb_takes_last_best_and_a_run_folder(tiny):
    succeed(f"{tiny} --run_dir runs/a")
    text = succeed("generate last --max_new_tokens 9")
    assert (
        text == succeed("generate runs/a --max_new_tokens 9") == succeed(f"generate runs/a/{LAST} --max_new_tokens 9")
    )
    assert "parameters" in succeed("grow best grown.ckpt --factor 2")
    assert "parameters" in succeed("grow runs/a/ grown-2.ckpt --factor 2")
    assert succeed("validate --ckpt_path runs/a") == succeed("validate --ckpt_path last")
    assert_refused(call("generate best --prompt Ω"), "--prompt")
    Path("runs/a/checkpoints/best.ckpt").unlink()
    assert_refused(call("grow best grown-3.ckpt --factor 2"), "IN_CKPT best", "no run in runs")


# Configuration, record and checkpoints, whatever the logger -----------------------------------------------------------

CSV = "{class_path: CSVLogger, init_args: {save_dir: logs}}"
TENSORBOARD = "{class_path: TensorBoardLogger, init_args: {save_dir: logs, name: tb, version: v}}"


@pytest.mark.parametrize("logger", [CSV, f"[{CSV}, {TENSORBOARD}]", "false"])
def test_a_run_is_whole_and_goes_on_with_any_logger(tiny, logger):
    succeed(f'{tiny} {GROWTH} --run_dir runs/a --trainer.logger "{logger}"')
    assert {"config.yaml", "record.json", "checkpoints"} <= {path.name for path in Path("runs/a").iterdir()}
    assert "resumed at step 6" in succeed("fit --ckpt_path last --trainer.max_steps 10")
    assert [path.name for path in Path("runs").iterdir()] == ["a"]
    events = json.loads(Path("runs/a/record.json").read_text())["growth_events"]
    assert [event["step"] for event in events] == [3, 8]
    assert not list(Path("runs/a").glob("events*"))
    if "TensorBoard" in logger:
        assert "growth_marks/by_tokens/val_loss/2" in scalars(Path("logs/tb/v"))


def test_the_configuration_is_replaced_when_it_changes_and_only_then(tiny):
    succeed(f"{tiny} --run_dir runs/a")
    path = Path("runs/a/config.yaml")
    before, file = path.read_text(), path.stat().st_ino
    assert_refused(
        call("fit --ckpt_path last --trainer.max_steps 9 --samples.max_new_tokens 5 --samples.prompt Ω"),
        "--samples.prompt",
    )
    assert (path.read_text(), path.stat().st_ino) == (before, file)
    succeed("fit --ckpt_path last --trainer.max_steps 8")
    changed = path.stat().st_ino
    assert changed != file  # put in its place, not emptied and written
    assert yaml.safe_load(path.read_text())["trainer"].pop("max_steps") == 8
    assert path.read_text() == before.replace("max_steps: 6", "max_steps: 8")
    succeed(f"{tiny} --run_dir runs/a --ckpt_path auto --trainer.max_steps 8")
    assert path.stat().st_ino == changed


# A command that is safe to repeat -------------------------------------------------------------------------------------


def test_auto_begins_goes_on_and_is_done_in_one_folder(tiny):
    auto = f"{tiny} {GROWTH} --ckpt_path auto"
    assert "resumed" not in succeed(f"{auto} --trainer.max_steps 4")
    assert "resumed at step 4" in succeed(auto)
    before = files()
    assert succeed(auto) == "runs/TokenFormer-CharText is finished; to go on, give more --trainer.max_steps\n"
    after = files()
    lock = f"runs/TokenFormer-CharText/{LOCK}"
    assert before.pop(lock) == after.pop(lock)
    assert before == after
    assert [path.name for path in Path("runs").iterdir()] == ["TokenFormer-CharText"]
    succeed(f"{tiny} {GROWTH} --run_dir runs/whole")
    assert_same_run(Path("runs/TokenFormer-CharText") / LAST, Path("runs/whole") / LAST)


def test_auto_begins_anew_where_a_killed_process_got_nowhere(tiny):
    succeed(f"{tiny} --run_dir runs/a")
    (Path("runs/a") / LAST).unlink()
    Path("runs/a/mine.txt").write_text("mine")
    Path("runs/a/checkpoints/.last.ckpt.1.tmp").touch()
    assert "resumed" not in succeed(f"{tiny} --run_dir runs/a --ckpt_path auto")
    assert Path("runs/a/mine.txt").read_text() == "mine"
    assert len(list(Path("runs/a").glob("**/events.out.tfevents.*"))) == 1
    assert not list(Path("runs/a").glob("**/*.tmp"))


def test_auto_does_not_begin_anew_over_a_damaged_checkpoint_and_is_for_fit(tiny):
    make_run(Path("runs/a"), "last.ckpt")
    assert_refused(call(f"{tiny} --run_dir runs/a --ckpt_path auto"), f"runs/a/{LAST} is damaged")
    assert_refused(call("test --run_dir runs/a --ckpt_path auto"), "--ckpt_path auto is for fit")


# One process a run ----------------------------------------------------------------------------------------------------


def test_while_a_run_goes_on_nobody_resumes_it_and_when_it_is_killed_anybody_may(tiny, tmp_path):
    endless = f"{tiny} --optim.schedule constant --checkpoints.every_n_steps 1"
    pid = begin(f"{endless} --trainer.max_steps 1000000 --run_dir runs/a", tmp_path)
    wait_for("step 5/", tmp_path)
    for again in ("--ckpt_path last", f"--ckpt_path runs/a/{LAST}", f"{tiny[4:]} --run_dir runs/a --ckpt_path auto"):
        line = f"fit {again} --trainer.max_steps 1000001"
        assert_refused(call(line), f"--run_dir runs/a: process {pid} on ", "works there")
    succeed(f"{tiny} --run_dir runs/a")
    assert (Path("runs/a-2") / LAST).is_file()
    succeed(f"validate --ckpt_path runs/a/{LAST}")  # who only reads may
    assert "2 runs in runs: 1 running, 1 finished\n" in succeed("runs")
    tell(pid, signal.SIGKILL)
    assert end(pid) == -signal.SIGKILL
    assert "a: go on with `python -m app fit --ckpt_path runs/a`\n" in succeed("runs --filter interrupted")
    at = read_checkpoint(Path("runs/a") / LAST)["global_step"]
    assert f"resumed at step {at:,}" in succeed(f"fit --ckpt_path runs/a --trainer.max_steps {at + 2}")


def test_a_lock_says_who_holds_it_and_is_let_go(tmp_path):
    with (
        held(tmp_path, "--out"),
        pytest.raises(ValueError, match=f"--out .*: process {os.getpid()} on"),
        ExitStack() as s,
    ):
        s.enter_context(held(tmp_path, "--out"))
    with held(tmp_path, "--out"):
        pass


# What leaves no trace -------------------------------------------------------------------------------------------------


def test_measuring_and_trying_leave_no_folder(tiny):
    succeed(f"{tiny} --run_dir runs/a")
    Path("runs/a/checkpoints/last.ckpt").rename("some.ckpt")
    (Path("runs/a") / "checkpoints/best.ckpt").rename("runs/a/checkpoints/last.ckpt")
    before = files()
    succeed("validate --ckpt_path some.ckpt --trainer.accelerator cpu")
    succeed("test --ckpt_path some.ckpt --trainer.accelerator cpu")
    succeed("validate --ckpt_path last")
    succeed(f"{tiny} --trainer.fast_dev_run true")
    succeed(f"{tiny} --trainer.fast_dev_run true --run_dir runs/a --ckpt_path auto")
    assert files() == before
    succeed("test --ckpt_path last")
    new = files().keys() - before.keys()
    assert [Path(name).match("runs/a/events.out.tfevents.*") for name in new] == [True]
