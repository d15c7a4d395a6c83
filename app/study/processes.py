"""Carrying out a plan: fits side by side in processes, each like `python -m app fit` typed by hand.

What is done is skipped, what was interrupted goes on from its last checkpoint, what fails does not stop the others.
Processes are forked from one that has imported everything, so that a run costs no start-up; each uses one device, or
one CPU thread where several run at once. If this process ends, however it ends, they save and end, too.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from app.cli.invocation import carried_out
from app.machine import num_cores, num_gpus, only_gpu
from app.output.progress import steps
from app.run.folders import AUTO
from app.stops import in_background
from app.study.study import STUDY_FILE, Planned, Record, Study, compact, read_study
from callbacks.record_file import RECORD, last_checkpoint, read_record

LOGS = "logs"


def record_of(folder: Path) -> Record | None:
    """The record in a run folder, None where there is none that can be read."""
    try:
        return read_record(folder / RECORD)
    except ValueError:
        return None


def stages(run: Planned, folder: Path) -> list[list[str]]:
    """Arguments of the commands that are still to be carried out, each safe to repeat: the fit, and the test."""
    record = record_of(folder) or {}
    fit = ["fit", *run.options, "--run_dir", str(folder), "--ckpt_path", AUTO]
    test = ["test", "--ckpt_path", str(last_checkpoint(folder)), *options_of_test(run.options)]
    is_trained = record.get("status") == "finished"
    return [*([] if is_trained else [fit]), *([test] if run.test and not (is_trained and "test" in record) else [])]


def options_of_test(options: Sequence[str]) -> list[str]:
    """What of a fit's options its test has to be told, too: how much of the split it measures, if not all."""
    limit = "--trainer.limit_test_batches"
    pairs = zip_longest(options, options[1:], fillvalue="")
    return [word for option, value in pairs for word in of_option(limit, option, value)]


def of_option(name: str, word: str, follows: str) -> list[str]:
    """The words that give the option of this name a value, `NAME=VALUE` or two, if it begins with `word`."""
    if word == name:
        return [word, follows]
    return [word] if word.startswith(f"{name}=") else []


def diverged(record: Record | None) -> bool:
    """Whether the run ended because its loss was not finite: an outcome, which a repetition would not change."""
    return bool(record) and str(record["status"]).startswith("failed") and "not finite" in record["status"]


def is_done(run: Planned, folder: Path) -> bool:
    """Whether nothing is left to do for the run."""
    return diverged(record_of(folder)) or not stages(run, folder)


def plain_commands(runs: Sequence[Planned], folder: Path) -> str:
    """The commands of all runs that are not done, a line a run, for a cluster's job array."""
    return "\n".join(
        " && ".join(shlex.join(["python", "-m", "app", *stage]) for stage in stages(run, folder / run.name))
        for run in runs
        if not is_done(run, folder / run.name)
    )


# One run --------------------------------------------------------------------------------------------------------------


def stop_with_parent() -> None:
    """Tell this process to save and stop when the one that started it is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    in_background(watch)


def carry_out(commands: list[list[str]], log: Path, environment: dict[str, str], threads: int | None) -> NoReturn:
    """Run the commands one after the other in this process, their output in `log`; exits as the last of them."""
    os.setsid()  # Ctrl-C at the terminal reaches the one that started it, which tells all to save and end
    os.environ.update(environment)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    import torch

    from app.run.fit import run

    if threads:
        torch.set_num_threads(threads)
    stop_with_parent()
    for command in commands:
        sys.argv = ["app", *command]  # by which Lightning launches the further processes of a run
        if code := carried_out(command, run):
            sys.exit(code)
    sys.exit(0)


@dataclass
class Active:
    """A run under way."""

    run: Planned
    process: BaseProcess
    device: int | None
    log: Path


# Many runs ------------------------------------------------------------------------------------------------------------


def default_workers() -> int:
    """Runs side by side unless told otherwise: one a GPU, else one a core."""
    return num_gpus() or num_cores()


def resumed(study: Study, folder: Path) -> Study:
    """The study with the records of what is done of its plan, by an earlier call or by the commands one by one.

    ValueError if the folder is of another study, or a run has other options there.
    """
    if (folder / STUDY_FILE).exists():
        try:
            earlier = read_study(folder / STUDY_FILE)
        except ValueError as error:
            raise ValueError(f"{error}; move it away, and what is done is read from the runs' own folders") from error
        planned = {run.name: run.options for run in earlier.plan}
        if earlier.verb != study.verb:
            raise ValueError(f"--out {folder} holds a study made by `{earlier.verb}`; name another folder")
        for run in study.plan:
            if planned.get(run.name, run.options) != run.options:
                raise ValueError(
                    f"--out {folder} holds {run.name} with other options ({difference(planned[run.name], run.options)})"
                    "; name another folder, or give the options that it was begun with"
                )
        study.records |= {run.name: earlier.records[run.name] for run in study.plan if run.name in earlier.records}
    for run in study.plan:
        if run.name not in study.records and is_done(run, folder / run.name):
            study.records[run.name] = compact(read_record(folder / run.name / RECORD))
    return study


def difference(old: list[str], new: list[str]) -> str:
    """Where two lists of options differ, for a message."""
    return " ".join(o for o in old if o not in new) + " -> " + " ".join(o for o in new if o not in old)


def execute(study: Study, runs: Sequence[Planned], folder: Path, workers: int, console: Console) -> list[str]:
    """Carry out `runs` of the study below `folder`, `workers` side by side; the study is saved after each.

    Returns a line for each run that failed. A run that diverged is an outcome, with a record, and no failure. On
    KeyboardInterrupt and SystemExit the runs save, and end, before this ends.
    """
    todo = [run for run in runs if run.name not in study.records]
    failures: list[str] = []
    active: list[Active] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["app.run.fit"])
    try:
        with steps(len(todo), console) as tell:
            while todo or active:
                while todo and len(active) < workers:
                    active.append(begin(todo.pop(0), folder, context, active, workers))
                wait([job.process.sentinel for job in active])
                for job in [job for job in active if not job.process.is_alive()]:
                    active.remove(job)
                    tell(finish(job, study, folder, failures))
    finally:
        for job in active:
            job.process.terminate()
        for job in active:
            job.process.join()
    return failures


def begin(run: Planned, folder: Path, context: Any, active: Sequence[Active], workers: int) -> Active:
    """Start what is left of a run on a device that is free."""
    place, gpus = folder / run.name, num_gpus()
    busy = [job.device for job in active]
    device = min(range(gpus), key=busy.count) if gpus else None
    environment = {} if device is None else only_gpu(device)
    log = folder / LOGS / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    commands = [] if diverged(record_of(place)) else stages(run, place)
    arguments = (commands, log, environment, 1 if workers > 1 else None)
    process = context.Process(target=carry_out, args=arguments, daemon=False)
    process.start()
    return Active(run, process, device, log)


def finish(job: Active, study: Study, folder: Path, failures: list[str]) -> str:
    """Take over the record of a run whose process has ended; returns a line about it."""
    record = record_of(folder / job.run.name)
    if record and is_done(job.run, folder / job.run.name):
        study.records[job.run.name] = compact(record)
        study.save(folder)
        return f"{job.run.name}: {outcome(record)}"
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if job.log.exists() else []
    reason = f"{job.run.name} failed (exit code {job.process.exitcode}): {lines[-1] if lines else 'no output'}"
    failures.append(f"{reason}; its output is in {job.log}")
    return reason


def outcome(record: Record) -> str:
    """How a run ended, in a few words."""
    if diverged(record):
        return "diverged"
    split, results = ("val/", record["final"]) if record["final"] else ("test/", record.get("test", {}))
    values = {key.removeprefix(split): value for key, value in results.items() if key.startswith(split)}
    shown = ", ".join(f"{name.replace('_', ' ')} {values[name]:.4g}" for name in ("loss", "accuracy") if name in values)
    return f"{shown}, {record['seconds']:.0f} s"
