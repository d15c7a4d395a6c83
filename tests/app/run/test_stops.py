"""Ctrl-C and SIGTERM, to whom and whenever they are sent, and processes that are lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.machine import FIRST_PROCESS_VARIABLE, RUN_DIR_VARIABLE, announce_run_dir, has_lost_first_process
from app.run.checkpoints import read_checkpoint
from app.stops import lost, lost_processes_told, watch_launched
from tests.app.forked import ERRORS, OUTPUT, TIMEOUT, begin, begin_ranks, end, tell, wait_for
from tests.app.test_cli import ROOT

LAST = "run/checkpoints/last.ckpt"


@pytest.fixture
def endless(tiny_text):
    """A fit that never ends by itself."""
    return (
        f"fit --model Transformer --model.d_model 8 --model.num_heads 2 --data CharText --data.corpus {tiny_text} "
        "--data.seq_len 16 --data.batch_size 4 --trainer.accelerator cpu --samples.max_new_tokens 0 --run_dir run "
        "--trainer.limit_val_batches 1 --trainer.val_check_interval 20 --trainer.max_steps -1 --trainer.max_epochs -1"
    )


@pytest.fixture
def start(tmp_path):
    """Begins a command in a process of its own; whatever is left of it at the end of the test is ended."""
    begun = []

    def run(line: str) -> int:
        begun.append(begin(line, tmp_path))
        return begun[-1]

    yield run
    for pid in begun:
        tell(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_serve_a_run_that_is_told_to_stop_until_it_has_saved(endless, start, tmp_path, number, code):
    """`timeout`, SLURM and systemd send SIGTERM to the whole group, a terminal Ctrl-C."""
    pid = start(f"{endless} --data.num_workers 2")
    wait_for("step 20", tmp_path)
    tell(pid, number)
    assert end(pid) == code
    assert read_checkpoint(tmp_path / LAST)["global_step"] >= 20
    assert "stopped; go on with" in (tmp_path / OUTPUT).read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once_and_leaves_no_folder(endless, start, tmp_path, number, code):
    attack = "--trainer.callbacks+=tests.app.run.attacks.Hang"
    pid = start(f"{endless} {attack}")
    wait_for("hangs", tmp_path)
    tell(pid, number)
    wait_for("once more stops at once", tmp_path)
    tell(pid, number)
    assert end(pid) == code
    assert {path.name for path in tmp_path.iterdir()} == {OUTPUT, ERRORS}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["setup", "on_fit_start"])
def test_a_signal_before_training_ends_the_command_and_leaves_nothing(endless, start, tmp_path, moment, number, code):
    attack = f"--trainer.callbacks+=tests.app.run.attacks.Hang --trainer.callbacks.moment {moment}"
    pid = start(f"{endless} {attack}")
    wait_for("hangs", tmp_path)
    tell(pid, number)
    assert end(pid) == code
    assert {path.name for path in tmp_path.iterdir()} == {OUTPUT, ERRORS}


def test_verbs_that_train_nothing_are_stopped_alike(start, tmp_path, monkeypatch):
    def demo():
        print("demo", flush=True)
        time.sleep(TIMEOUT)

    monkeypatch.setattr("app.run.demo.demo", demo)
    pid = start("demo")
    wait_for("demo", tmp_path)
    tell(pid, signal.SIGTERM)
    assert end(pid) == 143


# Processes of one run -------------------------------------------------------------------------------------------------


def on_two(endless: str, folder: Path) -> subprocess.Popen:
    """The fit in two processes, the second of which the first one launches."""
    line = f"{endless} --trainer.devices 2 --trainer.strategy ddp"
    with (folder / OUTPUT).open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "app", *line.split()], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=file, stderr=file,
        )  # fmt: skip


def launched_by(process: subprocess.Popen) -> int:
    """The process that the first one has launched, as soon as there is one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + TIMEOUT
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(found[0])


def assert_ends(pid: int) -> None:
    """It is gone, or soon is."""
    deadline = time.monotonic() + TIMEOUT
    while Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")


@linux
def test_a_run_that_is_stopped_while_it_starts_leaves_no_process(endless, tmp_path):
    process = on_two(endless, tmp_path)
    second = launched_by(process)
    process.terminate()
    assert process.wait(TIMEOUT) == 143
    assert_ends(second)
    assert not (tmp_path / "run").exists()


def test_a_launched_process_does_not_take_itself_for_the_one_that_launched_it(monkeypatch):
    launched = {"LOCAL_RANK": "1", RUN_DIR_VARIABLE: "run", FIRST_PROCESS_VARIABLE: str(os.getppid())}
    for variable, value in launched.items():
        monkeypatch.setenv(variable, value)
    announce_run_dir(Path("run"))  # as each process of a run does
    assert not has_lost_first_process()


def test_a_process_that_is_killed_ends_the_run_with_one_line(endless, tmp_path):
    pids = begin_ranks(f"{endless} --trainer.devices 2 --trainer.strategy ddp", tmp_path)
    wait_for("step 20", tmp_path)
    tell(pids[1], signal.SIGKILL)
    assert [end(pid) for pid in pids] == [2, -signal.SIGKILL]
    (line,) = (tmp_path / ERRORS).read_text(encoding="utf-8").splitlines()
    assert line.startswith("error: another process of this run is gone; ")


def test_what_is_said_of_a_lost_process_becomes_one_line_and_nothing_else_does():
    gone = "[pair.cc:547] Connection closed by peer [127.0.0.1]:41785"
    with pytest.raises(ChildProcessError, match="is gone; do this"), lost_processes_told(lambda: "do this"):
        raise RuntimeError(gone)
    with pytest.raises(RuntimeError, match="shape"), lost_processes_told(lambda: "do this"):
        raise RuntimeError("shape mismatch")


def test_launched_processes_that_failed_are_told_from_those_that_did_not():
    good, bad, slow = (subprocess.Popen([sys.executable, "-c", code]) for code in ("", "exit(3)", "input()"))
    slow.kill()
    for process in (good, bad, slow):
        process.wait(TIMEOUT)
    assert lost([good]) == ""
    assert lost([good, bad]) == "process 2 of this run ended with exit code 3"
    assert lost([slow]) == "process 1 of this run was ended by SIGKILL"


def test_where_a_process_is_stuck_for_a_lost_one_a_thread_ends_it(capfd):
    """As in a collective operation that has no end."""
    if (pid := os.fork()) == 0:
        lost_one = subprocess.Popen([sys.executable, "-c", "exit(1)"])
        watch_launched([lost_one])
        time.sleep(TIMEOUT)
    assert end(pid) == 1
    assert capfd.readouterr().err == "error: process 1 of this run ended with exit code 1\n"
