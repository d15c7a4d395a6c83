"""`bench` of mixers: exponents, tables, peaks of memory, all models once at tiny sizes. No test asserts a time."""

import io
import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console

import models
from app.__main__ import main
from app.benchmark import mixers
from app.benchmark import suite as benchmarks
from app.benchmark.memory import highest_sum, peak_memory
from app.benchmark.results import Curve, Quantity, renderables
from app.benchmark.timing import fitted_exponent
from app.benchmark.workloads import Stream
from app.cli.names import model_names

LENGTHS = (256, 1024, 4096, 16_384)
SEQUENCE = Quantity("training", "Step", "ms", "time of a sequence", 1e3, power=1)


def curve(values, target=None, lengths=LENGTHS, model="Mixer"):
    """A curve of one round whose baseline takes 1 ms a token."""
    return Curve(SEQUENCE, model, "Base", lengths, tuple((v,) for v in values), ((1e-3,),) * len(lengths), target)


def test_fitted_exponent_recovers_a_power_law():
    assert fitted_exponent(LENGTHS, [3e-5 * T**1.37 for T in LENGTHS]) == pytest.approx(1.37, abs=1e-12)
    # Least squares: errors that cancel around the middle leave the slope alone.
    assert fitted_exponent([1, 10, 100], [2.0, 10 / 4, 200.0]) == pytest.approx(1.0, abs=1e-12)


def test_exponent_is_of_a_sequence_and_leaves_out_short_lengths():
    assert curve([7.0, 1e-3, 2e-3, 4e-3]).exponent == pytest.approx(1.5)  # a token's cost doubles as T quadruples
    assert curve([1e-3] * 2, target=1.1, lengths=(256, 1024)).exponent is None


def test_met_needs_an_exponent_and_a_target():
    flat = [1e-3] * 4
    assert curve(flat, target=1.1).met is True
    assert curve([7.0, 1e-3, 2e-3, 4e-3], target=1.1).met is False
    assert curve(flat).met is None
    assert curve(flat[:2], target=1.1, lengths=(256, 1024)).met is None


def test_ratios_are_taken_within_a_round():
    pair = Curve(SEQUENCE, "Mixer", "Base", (8,), ((1.0, 8.0, 3.0),), ((1.0, 2.0, 6.0),))
    assert pair.plain()["points"] == [
        {"seq_len": 8, "value": 3.0, "least_value": 1.0, "median": 1.0, "min": 0.5, "max": 4.0, "pairs": 3}
    ]


def test_tables_fit_into_80_columns_and_show_values_ratios_and_marks():
    longest = max(model_names(), key=len)
    curves = [
        curve([1e-3] * 4, target=1.1, model="Base"),
        curve([1.5e-3] * 4, target=1.1, model=longest),
        curve([7.0, 1e-3, 2e-3, 4e-3], target=1.1),
    ]
    console = Console(width=80, file=io.StringIO())
    for part in renderables(curves):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["T"] == ["=", "256", "1,024", "4,096", "16,384", "x", "target"]
    assert rows["Base"] == ["1.00", "1.00", "1.00", "1.00", "1.00", "<=", "1.10", "met"]  # in ms
    assert rows[longest] == ["1.50", "1.50", "1.50", "1.50", "1.00", "<=", "1.10", "met"]
    assert rows["Mixer"] == ["7,000", "1.00", "2.00", "4.00", "1.50", "<=", "1.10", "missed"]


def test_highest_sum():
    assert highest_sum([5, 4, -9, 8, -8]) == 9
    assert highest_sum([-3, 1]) == 0
    assert highest_sum([]) == 0


def test_peak_memory_of_a_known_pattern(capfd):
    kept = torch.zeros(1000)

    def work() -> None:
        first = torch.empty(1000, 100)
        second = first.clone()  # 800,000 bytes with it
        del first
        third = torch.empty(50, 1000)  # 600,000
        del second, third
        torch.empty(1000, 150)  # 600,000

    assert peak_memory(work, "cpu") == 800_000
    assert peak_memory(lambda: kept.sum(), "cpu") < 100
    assert capfd.readouterr() == ("", "")


def test_peak_memory_holds_what_the_backward_pass_needs():
    weight = torch.zeros(64, 64, requires_grad=True)
    x = torch.randn(1000, 64)
    forward = 4 * 1000 * 64
    # The activation, its gradient (an expanded scalar's copy at most) and the weight's.
    assert forward <= peak_memory(lambda: (x @ weight).square().sum().backward(), "cpu") <= 4.1 * forward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    assert peak_memory(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20


def test_peak_memory_passes_errors_on_and_restores_standard_error(capfd):
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, "cpu")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_targets_are_what_a_model_claims_and_a_little():
    linear, quadratic = (getattr(models, name)(vocab_size=8, d_model=16) for name in ("Palm", "Transformer"))
    assert mixers.claimed_target(mixers.TRAINING, linear, LENGTHS) == pytest.approx(1.1)
    assert mixers.claimed_target(mixers.DECODING, linear, LENGTHS) == pytest.approx(0.1)
    assert 1.9 < mixers.claimed_target(mixers.TRAINING, quadratic, LENGTHS) < 2.1
    assert mixers.claimed_target(mixers.TRAINING, linear, LENGTHS[:2]) is None


def test_the_baseline_is_always_there_and_lengths_are_in_order():
    assert mixers.chosen_models(["Palm", "Palm"]) == ("Transformer", "Palm")
    assert set(mixers.chosen_models(None)) == set(model_names())
    assert mixers.chosen_lengths([1024, 256, 1024]) == (256, 1024)
    assert mixers.chosen_lengths(None) is None


def test_all_models_are_measured_at_all_lengths():
    told = []
    curves = mixers.mixers(2, "cpu", seq_lens=(4, 8), tokens=8, budget=0, tell=told.append)
    expected = {(f"mixers.{what}", name) for what in ("training", "decoding", "memory") for name in model_names()}
    assert {(curve.quantity.name, curve.model) for curve in curves} == expected
    for curve in curves:
        assert curve.seq_lens == (4, 8)
        assert [len(values) for values in curve.values] == [1 if curve.quantity.name == "mixers.memory" else 2] * 2
        assert all(value > 0 for values in curve.values for value in values)
        assert curve.model != "Transformer" or curve.ratios == [[1] * len(values) for values in curve.values]
    assert told == [f"{what} at T = {T}" for what in ("training steps", "decoding") for T in (4, 8)]


def test_values_are_a_token_s_whatever_the_batch():
    assert mixers.per_token(["a", "b"], [[6.0, 3.0], [9.0]], 3) == {"a": [2.0, 1.0], "b": [3.0]}
    model = models.Transformer(vocab_size=mixers.VOCAB_SIZE, d_model=16)
    one, four = (mixers.training_bytes({"it": model}, 64, "cpu", tokens=tokens)["it"] for tokens in (64 * 8, 64 * 32))
    assert one[0] == pytest.approx(four[0], rel=0.1)


def test_every_round_decodes_from_the_same_place(monkeypatch):
    read = []

    class Watched(Stream):
        def read(self, count):
            read.append((self.position, count))
            super().read(count)

        def skip(self, count):
            read.append((self.position, count))
            super().skip(count)

    streams = {"it": Watched(models.Transformer(vocab_size=mixers.VOCAB_SIZE, d_model=16), "cpu")}
    for start, seq_len in ((0, 10), (10, 100)):
        mixers.decoding_seconds(streams, seq_len, "cpu", repeats=2)
        one_round = [(seq_len, 1), (seq_len + 1, mixers.DECODED)]
        assert read == [(start, seq_len - start), *one_round * 3]  # up to there, a warm-up and two rounds
        read.clear()


def test_the_command_line_prints_and_writes_all_curves(monkeypatch, tmp_path, capsys):
    small = replace(benchmarks.BENCHMARKS["mixers"], measure=partial(mixers.mixers, tokens=16))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "mixers", small)
    path = tmp_path / "speed.json"
    options = ["--models", "[Palm]", "--seq_lens", "[8,4]", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    assert main(["bench", "--what", "mixers", *options]) == 0
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [(result["name"], result["model"]) for result in results] == [
        (f"mixers.{quantity}", model)
        for quantity in ("training", "decoding", "memory")
        for model in ("Transformer", "Palm")
    ]
    assert [[point["seq_len"] for point in result["points"]] for result in results] == [[4, 8]] * 6
    out = capsys.readouterr().out
    assert "measuring decoding at T = 8" in out
    assert "Peak memory" in out


@pytest.mark.parametrize("name", model_names())
def test_a_stream_goes_on_where_it_was_and_a_fork_by_itself(name):
    torch.manual_seed(0)
    stream = Stream(getattr(models, name)(vocab_size=mixers.VOCAB_SIZE), "cpu")
    stream.fork().read(2)
    stream.read(3)
    fork = stream.fork()
    fork.read(16)  # a Transformer's cache writes in place, and is full
    stream.read(4)
    assert (stream.position, fork.position) == (7, 19)
    tokens_BT = torch.stack(stream.tokens[:8], 1)
    with torch.no_grad():
        logits_BV, _ = stream.model.step(tokens_BT[:, 7], stream.state)
        torch.testing.assert_close(logits_BV, stream.model(tokens_BT)[:, 7], rtol=1e-3, atol=1e-3)
