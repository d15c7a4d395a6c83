"""`python -m app gpu`, tried on the CPU: the script itself must be known to work where there is a GPU."""

import itertools
import json
import re
import time
from dataclasses import replace

import pytest
import torch

from app.__main__ import main
from app.gpu import command, equality, ratios, runs
from app.gpu.checks import Check, at_most
from app.gpu.command import checks, gpu
from models import Palm
from tests.app.forked import ERRORS, OUTPUT, begin, begin_ranks, end

TINY = "--model.num_param_tokens 8 --model.num_ffn_param_tokens 8 --model.d_model 16"


@pytest.fixture
def bench(tmp_path):
    return runs.Bench("cpu", compile=False, folder=tmp_path, deadline=time.monotonic() + 600)


@pytest.fixture
def forked(tmp_path, tiny_text, monkeypatch):
    """Let commands of the checks run in processes that need no start-up, on little text, for a few steps."""
    folders = itertools.count()

    def output(words, seconds):
        assert seconds > 0
        folder = tmp_path / f"call-{next(folders)}"
        folder.mkdir()
        line = " ".join(words)
        if line.startswith("fit --model"):
            line += f" --data.corpus {tiny_text} {TINY}"
        devices = re.search(r"devices (\d)", line)
        number = int(devices.group(1)) if devices else 1
        codes = list(map(end, begin_ranks(line, folder, number) if number > 1 else [begin(line, folder)]))
        said = "".join((folder / name).read_text(encoding="utf-8") for name in (OUTPUT, ERRORS))
        if any(codes):
            raise runs.RunError(said)
        return said

    monkeypatch.setattr(runs, "command_output", output)
    monkeypatch.setattr(runs, "STRATEGIES", ["fsdp2"])  # the other is tried often enough
    for name, steps in (("GROWS_AT", 4), ("STEPS", 8), ("MORE_STEPS", 12)):
        monkeypatch.setattr(runs, name, steps)


def test_equality_of_a_device_with_itself_is_found():
    found = list(equality.equality(("Palm",), "cpu", compile=False))
    assert [check.passed for check in found] == [True] * 3, found


def test_a_wrong_gradient_and_a_wrong_stream_are_found(monkeypatch):
    signs, prefill = iter((1, -1, -1)), Palm.prefill
    monkeypatch.setattr(equality, "gradient", lambda model, batch: next(signs) * torch.ones(3, dtype=torch.float64))
    monkeypatch.setattr(Palm, "prefill", lambda self, tokens, state: prefill(self, tokens.flip(1), state))
    assert [check.passed for check in equality.equality(("Palm",), "cpu", compile=False)] == [False] * 3


def test_a_model_that_does_not_compile_is_one_failed_check(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: (_ for _ in ()).throw(RuntimeError("no\nbackend")))
    found = [check for check in equality.equality(("Palm",), "cpu", compile=True) if check.passed is False]
    assert [check.found for check in found] == ["RuntimeError: no"]


def test_a_model_is_trained_grown_resumed_and_writes(bench, forked):
    found = list(runs.training(("TokenFormer",), bench))
    assert [check.passed for check in found] == [True, True], found
    assert "text: 126 characters" in found[1].found


def test_two_devices_train_and_grow(bench, forked):
    (found,) = runs.distributed(("Palm", "TokenFormer"), bench)
    assert (found.passed, found.what[:23]) == (True, "TokenFormer: fit, fsdp2"), found


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 40},
        {"status": "interrupted"},
        {"growth_events": []},
        {"growth_events": [{"logit_change": 1.0}]},
        {"history": [{"val/loss": 2.0}, {"val/loss": 2.0}]},
    ],
)
def test_a_run_that_did_not_do_all_is_a_failure(wrong):
    record = {
        "step": runs.MORE_STEPS, "status": "finished", "growth_events": [{"logit_change": 1e-6}],
        "history": [{"val/loss": 3.0}, {"val/loss": 2.0}],
    }  # fmt: skip
    assert runs.outcome(record).startswith("loss 3.000 -> 2.000")
    with pytest.raises(runs.RunError):
        runs.outcome(record | wrong)


def test_commands_are_processes_whose_failure_and_time_are_told(bench):
    with pytest.raises(runs.RunError, match="exit code 2: error: .*'nothing'"):
        bench.call("nothing")
    with pytest.raises(runs.RunError, match="not finished: the time was up"):
        runs.command_output(["runs"], 0.01)
    with pytest.raises(runs.RunError, match="not begun: the time was up"):
        runs.command_output(["runs"], 0)


def test_ratios_are_rows_and_a_failed_benchmark_is_one(bench, monkeypatch):
    spread = {"median": 1.5, "min": 1.0, "max": 2.0}
    results = {
        "quick": [{"name": "growth", "compares": "event / step", "target": 3.0, **spread}],
        "mixers": [{"name": "mixers.training", "model": model, "baseline": "Transformer",
                    "points": [{"seq_len": 4096, **spread}]} for model in ("Transformer", "Palm")],
    }  # fmt: skip

    def call(words, seconds):
        if words[1] not in results:
            raise runs.RunError("exit code 1: broken")
        (bench.folder / f"{words[1]}.json").write_text(json.dumps({"results": results[words[1]]}), encoding="utf-8")
        return ""

    monkeypatch.setattr(runs, "command_output", call)
    quick, mixers, inference = ratios.ratios(("Palm",), bench, repeats=1)
    assert quick == Check("bench", "growth: event / step", "1.50 [1.00, 2.00]", "<= 3")
    assert mixers == Check("bench", "mixers.training: Palm / Transformer", "1.50 [1.00, 2.00] at T 4,096")
    assert (inference.passed, inference.found) == (False, "exit code 1: broken")


def test_what_comes_after_the_deadline_is_named_and_no_failure(bench):
    late = replace(bench, deadline=0.0)
    found = [*runs.training(("Palm",), late), *runs.distributed(("Palm",), late), *ratios.ratios(("Palm",), late, 1)]
    assert {(check.found, check.passed) for check in found} == {("not begun: the time was up", None)}
    assert [check.found for check in checks(["training", "bench"], ("Palm",), late, 1)] == [
        "not begun: the time was up"
    ] * 2


def test_one_gpu_distributes_nothing(bench, monkeypatch):
    monkeypatch.setattr(command, "num_gpus", lambda: 1)
    (found,) = checks(["distributed"], ("Palm",), replace(bench, device="cuda"), 1)
    assert (found.found, found.passed) == ("not tried: there is one GPU", None)


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (None, 0), (False, 1)])
def test_the_table_has_the_devices_name_and_the_code_tells_of_failures(passed, code, tmp_path, monkeypatch, capsys):
    found = [at_most("equality", "a|b", 0.5, 1.0), Check("bench", "c", "d", passed=passed)]
    monkeypatch.setattr(command, "checks", lambda *_: iter(found))
    monkeypatch.setattr(command, "about_machine", lambda _: {"CPU": "A  (fast) CPU", "torch": "2"})
    assert gpu(device="cpu", models=["Palm"], out=tmp_path) == code
    text = (tmp_path / "cpu-a-fast-cpu.md").read_text(encoding="utf-8")
    assert "CPU A  (fast) CPU, torch 2." in text
    assert "| equality | a\\|b | 5.0e-01 | <= 1 | passed |" in text
    assert f"{int(passed is True) + 1} checks passed, {code} failed." in capsys.readouterr().out


def test_without_a_gpu_a_clear_word(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert "PyTorch finds no GPU here; use --device cpu" in capsys.readouterr().err
