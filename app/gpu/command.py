"""`python -m app gpu`: try on a GPU all that this project does there, and leave one table with the GPU's name.

PyTorch and what needs it are imported by the functions that use them, so that `gpu --help` answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

from app.cli.checks import at_least_one, check_folder, unique
from app.cli.invocation import command_line
from app.cli.names import known_models
from app.machine import about_machine, check_compiler, find_device, num_gpus
from app.output.progress import announce, say
from app.output.tables import WIDE, new_console
from callbacks.atomic import write_text

if TYPE_CHECKING:
    from app.gpu.checks import Check
    from app.gpu.runs import Bench

Part = Literal["equality", "training", "distributed", "bench"]


def gpu(
    parts: Part | list[Part] | None = None,
    *,
    models: list[str] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    compile: bool = True,
    minutes: float = 10.0,
    repeats: int = 5,
    out: Path = Path("results"),
) -> int:
    """Try on a GPU all that is done there, hold it against the CPU, and write a table with the GPU's name.

    Args:
        parts: Some of the four parts, as in [equality,training]. equality compares gradients and streaming with the
            CPU's; training trains, grows, resumes and generates with each model, in bf16-mixed; distributed does so
            over ddp and fsdp2, on two GPUs; bench measures ratios. By default all.
        models: Models to try, as in [Palm,TokenFormer]; else all.
        device: Where; cpu is there to try the checks themselves, without a GPU.
        compile: Compile the models.
        minutes: Time after which nothing more is begun; what runs then is ended, and named.
        repeats: Rounds of each benchmark, at most.
        out: Folder of the table.

    Returns:
        0, or 1 if a check failed.
    """
    wanted = unique("parts", [parts] if isinstance(parts, str) else parts or list(get_args(Part)))
    names = known_models(models)
    if not 0 < minutes < float("inf"):
        raise ValueError(f"--minutes is {minutes}; it must be a number above 0")
    at_least_one(repeats=repeats)
    check_folder("--out", out)
    announce(f"gpu: {', '.join(wanted)} of {', '.join(names)}")
    place = find_device(device)
    check_compiler(compile)
    from app.gpu.checks import file_name, page, summary
    from app.gpu.runs import Bench

    machine = about_machine(place)
    title = str(machine["GPU" if place == "cuda" else "CPU"])
    path = out / file_name("gpu" if place == "cuda" else "cpu", title)
    console = new_console(WIDE)
    found: list[Check] = []
    deadline = time.monotonic() + 60 * minutes
    with TemporaryDirectory(prefix="greenhouse-") as folder:
        for check in checks(wanted, names, Bench(place, compile, Path(folder), deadline), repeats):
            found.append(check)
            say(console, " | ".join(cell for cell in check.cells[1:] if cell))
            write_text(path, page(title, command_line(), machine, found))
    say(console, f"{summary(found)} The table is in {path}.")
    return int(any(check.passed is False for check in found))


def checks(parts: list[Part], names: tuple[str, ...], bench: Bench, repeats: int) -> Iterator[Check]:
    """The checks of these parts, as they are done."""
    from app.gpu.checks import Check
    from app.gpu.equality import equality
    from app.gpu.ratios import ratios
    from app.gpu.runs import distributed, training

    for part in parts:
        if part != "equality" and time.monotonic() >= bench.deadline:
            yield Check(part, "all of it", "not begun: the time was up")
        elif part == "equality":
            yield from equality(names, bench.device, bench.compile)
        elif part == "training":
            yield from training(names, bench)
        elif part == "bench":
            yield from ratios(names, bench, repeats)
        elif bench.device == "cuda" and num_gpus() < 2:
            yield Check(part, "ddp and fsdp2", "not tried: there is one GPU")
        else:
            yield from distributed(names, bench)
