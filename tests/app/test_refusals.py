"""What is accepted works, what cannot work is refused: on one short line, before the work, and in every locale."""

import io
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from app.__main__ import main
from app.cli import faults
from app.cli.checks import check_file, check_folder
from app.machine import TRACEBACK_VARIABLE
from tests.app.forked import TIMEOUT
from tests.app.test_cli import CONFIGS, ROOT, assert_refused, call, here, scratch, tiny  # noqa: F401 - fixtures among them

NARROW = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # where Python takes ASCII for all encoding


# One line, and for a fault of ours a file ----------------------------------------------------------------------------


def demo_that_raises(monkeypatch, error: BaseException) -> None:
    def demo() -> int:
        raise error

    monkeypatch.setattr("app.run.demo.demo", demo)


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo_that_raises(monkeypatch, KeyError("lost"))
    outcome = call("demo")
    (kept,) = tmp_path.iterdir()
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert outcome.err.startswith("error: KeyError: 'lost'")
    assert kept.name in outcome.err
    text = kept.read_text(encoding="utf-8")
    assert text.startswith("$ python -m app demo\n")
    assert "in demo\n    raise error\nKeyError: " in text


def test_a_fault_of_ours_is_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / f"greenhouse-traceback-{os.getpid()}.txt").mkdir()  # in the way
    demo_that_raises(monkeypatch, AssertionError())
    assert str(tmp_path / "tmp" / "greenhouse-traceback") in call("demo").err


def test_a_user_who_asks_for_it_sees_where_a_message_comes_from(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    demo_that_raises(monkeypatch, KeyError("lost"))
    with pytest.raises(KeyError, match="lost"):
        call("demo")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,) and data type int64"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_too_little_memory_is_for_the_user_to_mend(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    demo_that_raises(monkeypatch, error)
    assert_refused(call("demo"), "out of memory", "smaller")
    assert not list(tmp_path.iterdir())


def test_no_message_is_longer_than_a_few_rows(monkeypatch):
    demo_that_raises(monkeypatch, ValueError("--demo\n  is " + "x" * 30_000 + "; leave it out"))
    outcome = call("demo")
    assert_refused(outcome, "--demo is xxx", " ... ", "; leave it out")
    assert len(outcome.err) < 80 * 8
    assert faults.one_line("short, as\n  it is") == "short, as it is"


# Places are tried before the work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_folder, check_file])
def test_a_place_is_tried_and_left_as_it_was(tmp_path, check):
    check("--out", tmp_path / "new" / "newer")
    check("--out", tmp_path / "new.md")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where even root cannot write")
@pytest.mark.parametrize(
    "line",
    [
        f"compare --presets {CONFIGS}/experiment --tokens 1e5 --out /proc/x",
        "growth-study --out /proc/x",
        "scorecard --out /proc/x/y",
        "scaling runs --out /proc/x",
        "report runs --out /proc/x.md",
        "bench --json /proc/x.json",
        "grow whole.ckpt /proc/x.ckpt --factor 2",
    ],
)
def test_where_nothing_can_be_written_no_work_is_done(here, line):  # noqa: F811
    assert_refused(call(line), "/proc/x", "cannot be written (/proc: ", "name another")


# UTF-8 everywhere ----------------------------------------------------------------------------------------------------


def test_the_locale_decides_nothing(tiny, tmp_path):  # noqa: F811
    config = tmp_path / "maté.yaml"
    config.write_text("samples: {prompt: 'maté'}  # é\n", encoding="utf-8")
    line = [*tiny.split(), "--config", config.name, "--run_dir", "runs/maté"]
    process = subprocess.run(
        [sys.executable, "-m", "app", *line], cwd=tmp_path, env=os.environ | NARROW | {"PYTHONPATH": str(ROOT)},
        capture_output=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"run folder: runs/mat?\n" in process.stdout
    assert "prompt: maté" in (tmp_path / "runs/maté/config.yaml").read_text(encoding="utf-8")


def test_text_is_not_cut_off_by_what_a_terminal_cannot_show(here):  # noqa: F811
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(terminal):
        assert main(["generate", "whole.ckpt", "--prompt", "maté", "--max_new_tokens", "5"]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().startswith(b"mat?")
    assert len(terminal.buffer.getvalue()) == 4 + 5 + 1


# Words that begin with a dash, texts of other kinds -------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A checkpoint of a model trained on ten thousand characters, none of which is a line break."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "many.txt").write_text("-- x" + "".join(map(chr, range(0x4E00, 0x4E00 + 10_000))) * 2, encoding="utf-8")
    data = f"--data CharText --data.corpus {folder}/many.txt --data.seq_len 16 --data.batch_size 1"
    model = "--model Transformer --model.d_model 8 --model.num_heads 2"
    trainer = "--trainer.accelerator cpu --trainer.max_steps 1 --trainer.logger false"
    assert call(f"fit {model} {data} {trainer} --samples.prompt -x --run_dir {folder}/run").code == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("prompt", ["-x", "-", "- x"])
@pytest.mark.parametrize("form", ["--prompt={}", "--prompt {}"])
def test_a_prompt_may_begin_with_a_dash(unbroken, prompt, form):
    outcome = call(f"generate {unbroken} --max_new_tokens 2 {form.format(shlex.quote(prompt))}")
    assert outcome.code == 0
    assert outcome.out.startswith(prompt)


def test_text_without_line_breaks_can_be_written_without_a_prompt(unbroken):
    outcome = call(f"generate {unbroken} --max_new_tokens 2")
    assert (outcome.code, len(outcome.out)) == (0, 1 + 2 + 1)


@pytest.mark.parametrize(
    "line",
    [
        "generate {ckpt} --prompt Ω",
        "fit --ckpt_path {ckpt} --samples.prompt Ω --trainer.max_steps 3",
        "fit --ckpt_path {ckpt} --data.corpus {text} --trainer.max_steps 3",
    ],
)
def test_a_large_vocabulary_makes_no_long_message(unbroken, tiny_text, line):
    outcome = call(line.format(ckpt=unbroken, text=tiny_text))
    assert_refused(outcome, "10,0")
    assert len(outcome.err) < 80 * 8
