"""`python -m app bench`: the timing by fake clocks, the benchmarks at tiny sizes. No test asserts a time."""

import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console

from app.benchmark import suite as benchmarks
from app.benchmark.command import Name, bench, expand
from app.benchmark.results import Result, ratio_table
from app.benchmark.timing import Ratio, Stopwatch, in_turn, interleaved, seconds
from app.machine import cpu_model, find_device


class FakeClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, durations: list[float]) -> Callable[[], None]:
        remaining: Iterator[float] = iter(durations)

        def work() -> None:
            self.now += next(remaining)

        return work


def is_sane(ratio: Ratio) -> bool:
    return all(math.isfinite(value) and value > 0 for value in (ratio.min, ratio.seconds_a, ratio.seconds_b, ratio.max))


def test_ratio_is_the_median_of_pairs_not_of_sides():
    ratio = Ratio.of([1.0, 8.0, 3.0], [1.0, 2.0, 6.0])
    assert ratio == Ratio(median=1.0, min=0.5, max=4.0, seconds_a=3.0, seconds_b=2.0, pairs=3)


def test_ratio_refuses_unpaired_times():
    with pytest.raises(ValueError, match="shorter"):
        Ratio.of([1.0, 2.0], [1.0])


def test_seconds_wait_for_the_device_before_and_after():
    clock, events = FakeClock(), []

    def sync() -> None:
        events.append(("sync", clock.now))
        clock.now += 10

    assert (
        seconds(clock.taking([3.0]), sync, clock) == 13
    )  # the work, and waiting until it is done, but not what was before
    assert events == [("sync", 0.0), ("sync", 13.0)]


def test_interleaved_alternates_prepares_untimed_and_forgets_the_warm_up():
    clock, order = FakeClock(), []
    work_a, work_b = clock.taking([50.0, 2.0, 6.0]), clock.taking([1.0, 1.0, 2.0])
    prepare = clock.taking([1000.0, 1000.0, 1000.0])
    ratio = interleaved(
        lambda: (order.append("a"), work_a()),
        lambda: (order.append("b"), work_b()),
        2,
        warmup=1,
        prepare=lambda: (order.append("prepare"), prepare()),
        clock=clock,
    )
    assert order == ["prepare", "a", "b"] * 3
    assert ratio == Ratio(median=2.5, min=2.0, max=3.0, seconds_a=4.0, seconds_b=1.5, pairs=2)


def test_rounds_end_with_the_budget_but_not_before_there_are_three():
    def rounds(repeats: int, budget: float) -> list[float]:
        clock = FakeClock()
        (taken,) = in_turn(
            [clock.taking([float(n) for n in range(1, 9)])], repeats, warmup=1, budget=budget, clock=clock
        )
        return taken

    assert rounds(7, budget=math.inf) == [2, 3, 4, 5, 6, 7, 8]
    assert rounds(7, budget=15) == [2, 3, 4, 5]  # 1 + 2 + 3 + 4 + 5 = 15, the warm-up among them
    assert rounds(7, budget=0) == [2, 3, 4]
    assert rounds(2, budget=0) == [2, 3]


def test_stopwatch_times_whole_chunks_and_leaves_out_what_runs_in_between():
    clock = FakeClock()
    other = clock.taking([4.0, 2.0, 8.0])
    stopwatch = Stopwatch(other, chunk=2, clock=clock)
    step = clock.taking([9.0, 9.0, 1.0, 3.0, 2.0, 2.0, 5.0])  # the last begins a chunk that never ends
    clock.now = 100.0
    stopwatch.start("a hook's", "arguments")
    for _ in range(7):
        step()
        stopwatch.tick("a hook's", "arguments")
    assert stopwatch.seconds == [18.0, 4.0, 4.0]
    assert stopwatch.seconds_other == [4.0, 2.0, 8.0]
    assert stopwatch.ratio() == Ratio(median=1.25, min=0.5, max=2.0, seconds_a=2.0, seconds_b=2.5, pairs=2)


def test_every_name_has_a_benchmark_and_the_reverse():
    assert set(get_args(Name)) == benchmarks.BENCHMARKS.keys()


def test_pattention_runs():
    assert is_sane(benchmarks.pattention(2, "cpu", d_model=8, num_param_tokens=16, positions=4))


def test_growth_runs_and_times_one_event_each(monkeypatch, capsys):
    grown = []

    class Counted(benchmarks.Growth):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before = pl_module.parameter_token_sizes()
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            grown.append((before, pl_module.parameter_token_sizes(), len(trainer.optimizers[0].state)))

    monkeypatch.setattr(benchmarks, "Growth", Counted)
    assert is_sane(benchmarks.growth(2, "cpu", d_model=16, batch_size=2, seq_len=8))
    before = {"num_param_tokens": 64, "num_ffn_param_tokens": 512}
    assert len(grown) == 5
    assert all(event == (before, {"num_param_tokens": 128, "num_ffn_param_tokens": 1024}, 12) for event in grown)
    assert capsys.readouterr().out == ""


def test_trainer_and_bare_loop_do_the_same_work():
    models = []
    ratio = benchmarks.lightning(
        2, "cpu", d_model=16, batch_size=2, seq_len=8, chunk=3, check=lambda *trained: models.extend(trained)
    )
    assert is_sane(ratio)
    assert ratio.pairs == 2
    trained, twin = (model.state_dict() for model in models)
    for name, value in trained.items():
        torch.testing.assert_close(value, twin[name], rtol=0, atol=0)
    assert models[0].tokens_seen == 9 * 2 * 8  # three chunks, the first a warm-up


def test_loader_runs(tiny_text):
    assert is_sane(benchmarks.loader(2, "cpu", d_model=16, batch_size=2, seq_len=16, corpus=str(tiny_text)))


def test_sparse_and_dense_recurrence_run():
    assert is_sane(benchmarks.sparse(2, "cpu", state_width=16, k=2, steps=3))
    assert is_sane(benchmarks.sparse_training(2, "cpu", state_width=16, k=2, batch_size=2, seq_len=3))


def test_sparse_nets_are_set_against_the_dense_one_at_each_width():
    told = []
    settings = benchmarks.BenchSettings(1, "cpu", tell=told.append)
    widths = benchmarks.Widths(sizes=((8, 2), (16, 2)))
    results = widths.run("sparse_widths", settings)
    assert len(told) == len(results) == widths.num_steps(settings) == 8
    assert "training, literal, k 2 of m 16 / dense" in [result.compares for result in results]


def test_every_sparse_step_goes_on_from_the_one_before(monkeypatch):
    seen = {"inhibited": [], "dense": []}

    class Watched(benchmarks.SparseRecurrence):
        def step(self, drive_BM, state):
            after = super().step(drive_BM, state)
            seen[self.variant].append((state[0].clone(), after[0].clone()))
            return after

    monkeypatch.setattr(benchmarks, "SparseRecurrence", Watched)
    benchmarks.sparse(2, "cpu", state_width=16, k=2, steps=3)
    for walked in seen.values():
        assert len(walked) == (3 + 2) * 3  # warm-up and repeats, of three steps each
        assert all(torch.equal(left[1], found[0]) for left, found in itertools.pairwise(walked))


def fake_measure(repeats: int, device: str) -> Ratio:
    return Ratio.of([0.2] * repeats, [0.1] * repeats)


@pytest.fixture
def fakes(monkeypatch):
    """Put benchmarks that take no time in the place of all."""
    targets = {"pattention": 3.0, "growth": 1.0}
    for name, benchmark in benchmarks.BENCHMARKS.items():
        if isinstance(benchmark, benchmarks.Benchmark):
            fake = benchmarks.Benchmark(f"{name} / else", targets.get(name, 2.0), fake_measure)
        else:
            fake = benchmarks.Survey(lambda *_, **__: [], (8,), lambda settings: 1)
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, fake)


def test_bench_prints_and_writes_what_was_asked_for(fakes, tmp_path, capsys):
    path = tmp_path / "speed.json"
    threads = torch.get_num_threads()
    options = {"repeats": 3, "threads": 1, "device": "cpu", "json": path, "matmul_precision": "medium"}
    assert bench(["pattention", "growth", "growth"], **options) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    about = {"CPU": cpu_model(), "threads": 1, "torch": torch.__version__, "matmul_precision": "medium"}
    assert written["machine"] == about
    assert written["results"] == [
        {
            "name": name, "compares": f"{name} / else", "median": 2.0, "min": 2.0, "max": 2.0, "seconds_a": 0.2,
            "seconds_b": 0.1, "pairs": 3, "target": target, "met": met,
        }
        for name, target, met in (("pattention", 3.0, True), ("growth", 1.0, False))
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "met" in out
    assert "missed" in out
    assert f"torch {torch.__version__}" in out
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, "highest")
    assert [entry.name for entry in tmp_path.iterdir()] == ["speed.json"]


def test_what_is_quick_is_all_but_what_takes_long():
    assert set(expand("all")) == set(get_args(Name))
    assert set(expand("all")) - set(expand("quick")) == {"inference", "mixers", "sparse_widths"}
    assert expand("loader") == ("loader",)
    assert expand(["loader", "growth", "loader"]) == ("loader", "growth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "--repeats is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"json": Path("no/such/folder/speed.json")}, "--json no/such/folder/speed.json"),
        ({"json": Path()}, "--json ."),
        ({"models": ["Palm", "Plam"]}, "--models Plam: no such model; did you mean 'Palm'?"),
        ({"models": []}, "--models is empty"),
        ({"seq_lens": [256, 0]}, "--seq_lens has 0"),
        ({"seq_lens": [16_385]}, "--seq_lens has 16385"),
        ({"what": "loader", "models": ["Palm"]}, "--models is for mixers and inference"),
        ({"what": "quick", "seq_lens": [256]}, "--seq_lens is for mixers and inference"),
        ({"what": "mixers", "batch_sizes": [4]}, "--batch_sizes is for inference"),
        ({"what": "mixers", "compile": True}, "--compile is for inference"),
        ({"batch_sizes": [4, 0]}, "--batch_sizes is 0"),
        ({"batch_sizes": [4, 4]}, "--batch_sizes .4, 4. names one twice"),
    ],
)
def test_mistakes_are_told_before_measuring(fakes, options, message):
    with pytest.raises(ValueError, match=message):
        bench(**({"what": "all"} | options))


def test_a_missing_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == "cpu"
    with pytest.raises(ValueError, match="--device cuda"):
        find_device("cuda")


def test_table_shows_ratio_range_target_and_mark():
    results = [Result("slow", "a / b", Ratio(1.5, 1.25, 2.0, 0.003, 0.002, 5), 1.1)]
    console = Console(width=120, file=io.StringIO())
    console.print(ratio_table(results))
    text = console.file.getvalue()
    assert all(
        part in text for part in ("slow", "a / b", "1.500", "1.250 .. 2.000", "<= 1.1", "missed", "3.00", "2.00")
    )
    assert json.loads(json.dumps(results[0].plain()))["median"] == 1.5


def test_cpu_model_reads_linux_and_does_without(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 3000  \nmodel name\t: other\n", encoding="utf-8")
    assert cpu_model(cpuinfo) == "Abacus 3000"
    assert cpu_model(tmp_path / "missing")


def test_help_does_not_wait_for_torch():
    code = """
import sys
from app.__main__ import main
try:
    main(["bench", "--help"])
finally:
    print("imported:", *sorted({"torch", "lightning", "models"} & sys.modules.keys()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Rounds to time in each benchmark" in run.stdout
    assert run.stdout.endswith("imported:\n")
