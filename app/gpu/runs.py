"""Whole runs on a device, each a command as a user types it, in a process of its own.

A model is trained in bf16-mixed and compiled, grows a layer in the middle, is gone on with, and writes. On two or more
devices TokenFormer does so over `ddp` and `fsdp2`. What a run should have done is read from its record.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app.gpu.checks import Check
from app.machine import ACCELERATORS, num_cores
from callbacks.record_file import RECORD, read_record

TRAINING, DISTRIBUTED = "training", "distributed"
STEPS, GROWS_AT, MORE_STEPS = 40, 20, 60  # of the first fit, of its growth, and of both fits together
WANTED = f"{MORE_STEPS} steps, an exact growth, loss falls"
WRITTEN = 64  # characters a sample
CORES_A_RUN = 4  # to compile with
STRATEGIES = ("ddp", "fsdp2")
LOGIT_BAR = 0.05  # of a growth that is exact but for rounding to bfloat16


class RunError(Exception):
    """A command that did not do what it should; the text says why."""


class LateError(RunError):
    """A command that was not begun, as the time was up."""


@dataclass(frozen=True)
class Bench:
    """Where runs are tried.

    Attributes:
        device: "cpu" or "cuda".
        compile: Whether models are compiled.
        folder: For the runs' folders.
        deadline: By `time.monotonic`, when all must have ended.
    """

    device: str
    compile: bool
    folder: Path
    deadline: float

    def call(self, *words: str) -> str:
        """What the command prints; RunError if it fails, or the time is up."""
        return command_output(words, self.deadline - time.monotonic())


def command_output(words: Sequence[str], seconds: float) -> str:
    """What `python -m app WORDS` prints, errors included; RunError if it fails, or takes longer than this."""
    if seconds <= 0:
        raise LateError("not begun: the time was up")
    try:
        process = subprocess.run(
            [sys.executable, "-m", "app", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            errors="replace", timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:  # ranks that it launched end by themselves
        raise RunError("not finished: the time was up") from error
    if process.returncode:
        lines = process.stdout.strip().splitlines()
        raise RunError(f"exit code {process.returncode}: {lines[-1] if lines else 'no output'}")
    return process.stdout


def fit_options(model: str, bench: Bench) -> list[str]:
    """What a first fit is told, but for the number of devices."""
    tokens = ["--growth.factor", "[2]"] if model == "TokenFormer" else []
    return [
        "--model", model, "--model.d_model", "64", "--model.compile", str(bench.compile).lower(), "--data", "CharText",
        "--data.seq_len", "64", "--data.batch_size", "8", "--growth.steps", f"[{GROWS_AT}]", "--growth.num_layers",
        "[2]", "--growth.layer_init", "exact", *tokens, "--trainer.precision", "bf16-mixed", "--trainer.accelerator",
        ACCELERATORS[bench.device], "--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", str(GROWS_AT),
        "--trainer.limit_val_batches", "4",
    ]  # fmt: skip


def train(model: str, devices: tuple[str, ...], folder: Path, bench: Bench) -> str:
    """Fit a model, go on from its checkpoint, and tell what came of it; RunError if it did not do all it should."""
    bench.call("fit", *fit_options(model, bench), *devices, "--run_dir", str(folder))
    bench.call("fit", "--ckpt_path", str(folder), *devices, "--trainer.max_steps", str(MORE_STEPS))
    return outcome(read_record(folder / RECORD))


def outcome(record: dict[str, Any]) -> str:
    """What a run's record tells of it; RunError if something is missing."""
    losses = [entry["val/loss"] for entry in record["history"] if "val/loss" in entry]
    changes = [event["logit_change"] for event in record["growth_events"]]
    found = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; logits changed by the growth by {', '.join(map(str, changes))}"
    is_whole = record["step"] == MORE_STEPS and record["status"] == "finished" and len(changes) == 1
    if not (is_whole and losses[-1] < losses[0] and max(changes) <= LOGIT_BAR):
        raise RunError(f"{record['status']} at step {record['step']}; {found}")
    return found


def write(folder: Path, bench: Bench) -> str:
    """Let the model in a run's folder write two samples; how fast it did."""
    output = bench.call(
        "generate", str(folder), "--device", bench.device, "--compile", str(bench.compile).lower(), "--precision",
        "bf16-mixed", "--num_samples", "2", "--max_new_tokens", str(WRITTEN),
    )  # fmt: skip
    return next(line for line in output.splitlines() if line.startswith("prompt: "))


def attempted(part: str, what: str, wanted: str, work: Callable[[], str]) -> Check:
    """The check of a piece of work that tells what it found."""
    try:
        return Check(part, what, work(), wanted, True)
    except RunError as error:
        return failed(part, what, wanted, error)


def failed(part: str, what: str, wanted: str, error: RunError) -> Check:
    """The check of what did not do as it should; what was not begun has not failed."""
    return Check(part, what, str(error), wanted, None if isinstance(error, LateError) else False)


def training_and_writing(model: str, bench: Bench) -> Sequence[Check]:
    """A fit that grows and is gone on with, and what it writes."""
    folder, fast = bench.folder / model, f"bf16-mixed{', compiled' * bench.compile}"
    fit = partial(train, model, ("--trainer.devices", "1"), folder, bench)
    return (
        attempted(TRAINING, f"{model}: fit, {fast}, grown, resumed", WANTED, fit),
        attempted(TRAINING, f"{model}: generate, {fast}", "2 samples", partial(write, folder, bench)),
    )


def training(names: tuple[str, ...], bench: Bench) -> Iterator[Check]:
    """The checks of all models, several at a time, as most of the time goes into compiling."""
    with ThreadPoolExecutor(max(1, num_cores() // CORES_A_RUN)) as pool:
        for checks in pool.map(partial(training_and_writing, bench=bench), names):
            yield from checks


def distributed(names: tuple[str, ...], bench: Bench) -> Iterator[Check]:
    """A fit over two devices by each strategy, of TokenFormer if it is among the models."""
    model = "TokenFormer" if "TokenFormer" in names else names[0]
    for strategy in STRATEGIES:
        devices = ("--trainer.devices", "2", "--trainer.strategy", strategy)
        fit = partial(train, model, devices, bench.folder / strategy, bench)
        yield attempted(DISTRIBUTED, f"{model}: fit, {strategy} on two devices, grown, resumed", WANTED, fit)
