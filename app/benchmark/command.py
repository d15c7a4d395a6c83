"""Measure speed as ratios: `python -m app bench` times things in turn and prints how they compare.

The benchmarks and the ratios we want are in `app.benchmark.suite`, the way of timing in `app.benchmark.timing`. Times
depend on the machine, so its name is printed beside them, and a ratio that misses its target is shown as such but is
no error.

PyTorch and what needs it are imported by the functions that use them, so that `bench --help` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from app.benchmark.results import Curve, Result, renderables
from app.cli.checks import at_least_one, check_file, unique
from app.machine import (
    Device,
    MatmulPrecision,
    about_machine,
    check_compiler,
    find_device,
    float32_products,
    num_threads,
)
from app.output.progress import announce, steps
from callbacks.atomic import write_json

Name = Literal[
    "pattention", "growth", "lightning", "loader", "sparse", "sparse_training", "sparse_widths", "mixers", "inference"
]
LONG = ("sparse_widths", "mixers", "inference")  # what quick leaves out
OF_MODELS = ("mixers", "inference")


def bench(
    what: Name | list[Name] | Literal["quick", "all"] = "quick",
    *,
    repeats: int = 20,
    threads: int | None = None,
    device: Device = "auto",
    models: list[str] | None = None,
    seq_lens: list[int] | None = None,
    batch_sizes: list[int] | None = None,
    matmul_precision: MatmulPrecision = "highest",
    compile: bool = False,
    json: Path | None = None,
) -> int:
    """Measure speed, as ratios of things timed in turn in one process.

    Args:
        what: A benchmark, a list of them as in [pattention,growth], quick for all but inference, mixers and
            sparse_widths, or all. mixers sets each model against the one-layer Transformer at several lengths, which
            takes about five minutes, and inference does so in reading prompts and in writing.
        repeats: Rounds to time in each benchmark, after a warm-up; the median of their ratios counts. In mixers and
            inference at most so many, fewer where a round takes long.
        threads: CPU threads for PyTorch; by default as many as it takes by itself.
        device: Where the models run; auto takes a GPU if there is one.
        models: For mixers and inference, models to set against the Transformer, as in [Palm,TokenFormer]; else all.
        seq_lens: For mixers and inference, lengths or contexts, as in [256,1024]; by default 256, 1024, 4096 and 16384,
            and for inference 64, 256, 1024 and 4096.
        batch_sizes: For inference, sequences side by side; by default 1 and 16.
        matmul_precision: Precision of products of float32 matrices: with high a GPU takes TF32, with medium bfloat16.
        compile: For inference, time compiled steps, too; to compile them takes minutes.
        json: File to write the results to as well.

    Returns:
        0, whether or not the targets are met.
    """
    names = expand(what)
    check_options(repeats, threads, json)
    check_for(OF_MODELS, names, models=models, seq_lens=seq_lens)
    check_for(("inference",), names, batch_sizes=batch_sizes, compile=compile or None)
    at_least_one(batch_sizes=min(batch_sizes or [1]))
    check_compiler(compile)
    announce(f"bench: {', '.join(names)}")
    from app.benchmark.mixers import chosen_lengths, chosen_models
    from app.benchmark.suite import BATCH_SIZES, BENCHMARKS, BenchSettings

    console = Console()
    found: list[Result | Curve] = []
    settings = BenchSettings(
        repeats, find_device(device), chosen_models(models), chosen_lengths(seq_lens),
        unique("batch_sizes", batch_sizes or BATCH_SIZES), compile,
    )  # fmt: skip
    total = sum(BENCHMARKS[name].num_steps(settings) for name in names)
    with num_threads(threads), float32_products(matmul_precision), steps(total, console, measuring=True) as tell:
        settings = replace(settings, tell=lambda doing: tell(f"measuring {doing}"))
        about = about_machine(settings.device)
        for name in names:
            found.extend(BENCHMARKS[name].run(name, settings))
    report(found, about, console, json)
    return 0


def report(found: list[Result | Curve], about: dict[str, Any], console: Console, json: Path | None) -> None:
    """Print what was found, and about which machine; write it to a file, too, if one is named."""
    for part in renderables(found):
        console.print(part, highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if json is not None:
        write_json(json, {"machine": about, "results": [result.plain() for result in found]}, indent=2)


def expand(what: str | list[Name]) -> tuple[str, ...]:
    """The names of the benchmarks to run, each once."""
    if what in ("quick", "all"):
        return tuple(name for name in get_args(Name) if what == "all" or name not in LONG)
    return (what,) if isinstance(what, str) else tuple(dict.fromkeys(what))


def check_options(repeats: int, threads: int | None, json: Path | None) -> None:
    """Raise ValueError for what would fail only after minutes of measuring."""
    at_least_one(repeats=repeats, threads=threads)
    if json is not None:
        check_file("--json", json)
        if not json.parent.is_dir():
            raise ValueError(f"--json {json} cannot be written: name a file in a folder that exists")


def check_for(benchmarks: tuple[str, ...], names: tuple[str, ...], **options: list[Any] | bool | None) -> None:
    """Raise ValueError for an option of these benchmarks that would change nothing, or leave nothing to measure."""
    for option, value in options.items():
        if value is not None and not set(benchmarks) & set(names):
            raise ValueError(
                f"--{option} is for {' and '.join(benchmarks)}, not measured here; leave it out or add {benchmarks[-1]}"
            )
        if value == []:
            raise ValueError(f"--{option} is empty; leave it out to take all")
