"""Measure speed as ratios: `python -m app bench` times pairs of things in turn and prints how they compare.

The benchmarks and the ratios we want are in `app.benchmarks`, the way of timing in `app.timing`. Times depend on the
machine, so its name is printed beside them, and a ratio that misses its target is shown as such but is no error.

PyTorch and what needs it are imported by the functions that use them, so that `bench --help` answers at once.
"""

from __future__ import annotations

import json as jsonlib
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich import box
from rich.console import Console
from rich.table import Table

from app.timing import Ratio

Name = Literal["pattention", "growth", "lightning", "loader"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome."""

    name: str
    compares: str
    ratio: Ratio
    target: float

    @property
    def met(self) -> bool:
        """Whether the median is at most the target."""
        return self.ratio.median <= self.target


def bench(
    what: Name | list[Name] | Literal["all"] = "all",
    *,
    repeats: int = 20,
    threads: int | None = None,
    device: Device = "auto",
    json: Path | None = None,
) -> int:
    """Measure speed, as ratios of two things timed in turn in one process.

    Args:
        what: One benchmark, a list of them as in [pattention,growth], or all.
        repeats: Pairs to time in each benchmark, after a warm-up; the median of their ratios counts.
        threads: CPU threads for PyTorch; by default as many as it takes by itself.
        device: Where the models run; auto takes a GPU if there is one.
        json: File to write the results to as well.

    Returns:
        0, whether or not the targets are met.
    """
    check_options(repeats, threads, json)
    from app.benchmarks import BENCHMARKS

    chosen = get_args(Name) if what == "all" else (what,) if isinstance(what, str) else tuple(dict.fromkeys(what))
    console, results = Console(), []
    with num_threads(threads):
        found = find_device(device)
        about = machine(found)
        for name in chosen:
            console.print(f"[dim]measuring {name}, {repeats} times ...[/]")  # no spinner: its thread would be timed too
            benchmark = BENCHMARKS[name]
            ratio = benchmark.measure(repeats, found)
            results.append(Result(name, benchmark.compares, ratio, benchmark.target))
    console.print(table(results))
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if json is not None:
        write_json(json, {"machine": about, "results": [as_plain(result) for result in results]})
    return 0


def check_options(repeats: int, threads: int | None, json: Path | None) -> None:
    """Raise ValueError for what would fail only after minutes of measuring."""
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; it must be at least 1")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}; it must be at least 1")
    if json is not None and (json.is_dir() or not json.resolve().parent.is_dir()):
        raise ValueError(f"--json {json} cannot be written: name a file in a folder that exists")


def find_device(device: Device) -> str:
    """Device to run on, "cpu" or "cuda"; ValueError where there is no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads for a while; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: str) -> dict[str, Any]:
    """What the times depend on, as plain values."""
    import torch

    gpu = {"GPU": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"CPU": cpu_model(), **gpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux tells it, elsewhere as Python does."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def table(results: list[Result]) -> Table:
    """Two lines a benchmark, 80 columns at most."""
    table = Table("A / B", box=box.SIMPLE_HEAD)
    for column in ("ms", "ratio\nmin .. max", "target", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        ratio = result.ratio
        table.add_row(
            f"[bold]{result.name}[/]\n{result.compares}",
            f"{1e3 * ratio.seconds_a:.2f}\n{1e3 * ratio.seconds_b:.2f}",
            f"[bold]{ratio.median:.3f}[/]\n{ratio.min:.3f} .. {ratio.max:.3f}",
            f"<= {result.target:g}",
            "[green]met[/]" if result.met else "[red]missed[/]",
        )
    return table


def as_plain(result: Result) -> dict[str, Any]:
    """A result as it stands in the JSON file."""
    plain = {"name": result.name, "compares": result.compares, **asdict(result.ratio)}
    return plain | {"target": result.target, "met": result.met}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    from callbacks.checkpoints import save_atomically

    text = jsonlib.dumps(content, indent=2) + "\n"
    save_atomically(lambda temporary: temporary.write_text(text, encoding="utf-8"), path)
