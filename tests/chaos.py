"""Kill, stop and resume random small runs, and compare what they leave with runs that nobody disturbed.

    make chaos                                   # or: python tests/chaos.py --runs 100 --seed 1

A case is a random command: model, task, optimizer, accumulation, workers, logger, growth, and an end by steps, epochs
or time. It is carried out once in peace, and once under attack: SIGKILL, SIGTERM and SIGINT at random moments, start-up
and the last milliseconds among them, and after each attack the same command again, `--ckpt_path auto`, until it is
through. Then last.ckpt and best.ckpt, the record and TensorBoard's points must be the same, bit for bit, and nothing
else must lie in the folder. It is no part of `make test`, as its attacks hit at other places each time. Cases are a
function of the seed; exit code 1 if anything differs, whose folders are kept.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: the cases run side by side

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import app.run.fit  # noqa: F401 - loaded here once, so that forked runs start at once
from tests.app.forked import begin, end

MODELS = {
    "Transformer": "--model.d_model 16 --model.num_heads 2",
    "TokenFormer": "--model.d_model 16 --model.num_heads 2 --model.num_param_tokens 4 --model.num_ffn_param_tokens 8",
    "PotatoLM": "--model.d_model 16 --model.num_heads 2",
    "Palm": "--model.d_model 16 --model.num_heads 2 --model.rank 4 --model.embedding_rank 4",
    "SparseRNN": "--model.d_model 16 --model.state_width 16 --model.k 4",
    "TrajectoryLM": "--model.d_model 16",
}
GROWTH = "--growth.steps=[4,9] --growth.num_param_tokens=[6,8] --growth.rewarm_steps 3"
LOGGERS = ("", "", "--trainer.logger CSVLogger --trainer.logger.save_dir logs", "--trainer.logger false")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = 14
BATCH, EPOCH = 4, 7  # rows in a batch, batches in an epoch
MAX_CALLS = 12  # of one command, before the case counts as never finished
TIMEOUT = 120.0  # seconds a call may take
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
VOLATILE = {"seconds", "command", "versions", "processes", "device"}  # of a record: what two runs need not share


@dataclass(frozen=True)
class Case:
    """A command, and the attacks on it: a signal, and when, in parts of the time that the run takes in peace."""

    number: int
    command: str
    time_limit: str
    attacks: tuple[tuple[int, float], ...]


def random_case(number: int, seed: int, text: Path) -> Case:
    """The case of this number."""
    rng = random.Random(f"{seed} {number}")
    model = rng.choice(sorted(MODELS))
    task = f"CharText --data.corpus {text} --data.seq_len 16" if rng.random() < 0.7 else "Copying --data.max_length 9"
    accumulate = rng.choice((1, 1, 2, 3))
    end = rng.choice(("steps", "steps", "epochs", "time"))
    words = [
        f"fit --model {model} {MODELS[model]} --data {task} --data.batch_size {BATCH} --run_dir run --ckpt_path auto",
        f"--data.num_workers {rng.choice((0, 0, 1))} --seed_everything {rng.randrange(100)}",
        f"--optim.optimizer {rng.choice(('adamw', 'muon'))} --optim.warmup_steps 2 --samples.max_new_tokens 0",
        f"--trainer.accelerator cpu --trainer.accumulate_grad_batches {accumulate} --trainer.log_every_n_steps 2",
        f"--trainer.val_check_interval {accumulate * rng.randint(2, 5)}",
        # A run whose time is over is measured at that step, once more than one that nobody disturbs.
        f"--trainer.limit_val_batches {0 if end == 'time' else 2}",
        f"--checkpoints.every_n_steps {rng.randint(1, 6)} {rng.choice(LOGGERS)}",
        GROWTH if model == "TokenFormer" and rng.random() < 0.7 else "",
        f"--trainer.limit_train_batches {EPOCH} --trainer.max_epochs {rng.randint(1, 3)} --trainer.max_steps -1"
        if end == "epochs"
        else f"--trainer.max_steps {STEPS}",
    ]
    attacks = tuple((rng.choice(SIGNALS), rng.uniform(0, 1.1)) for _ in range(rng.randint(1, 4)))
    limit = "--trainer.max_time 00:00:00:01" if end == "time" else ""
    return Case(number, " ".join(words), limit, attacks)


# Calls ----------------------------------------------------------------------------------------------------------------


def call(line: str, folder: Path, attack: tuple[int, float] = (signal.SIGKILL, TIMEOUT)) -> tuple[int, float]:
    """Carry out `python -m app LINE` in a folder; returns exit code and seconds.

    An attack is a signal to the process group, workers included, after so many seconds.
    """
    start = time.monotonic()
    number, seconds = attack
    code = end(begin(line, folder), seconds, number)
    return code, time.monotonic() - start


def until_next_second() -> None:
    """Wait: TensorBoard reads event files in the order of the seconds that they were begun in."""
    time.sleep(1 - time.time() % 1)


def carry_out(case: Case, folder: Path) -> list[str]:
    """Both runs of a case, and in what they differ."""
    peace, war = folder / "peace", folder / "war"
    for place in (peace, war):
        place.mkdir(parents=True)
    code, seconds = call(case.command, peace)
    if code:
        return [f"undisturbed, it ends with exit code {code}"]
    for number, part in case.attacks:
        code, _ = call(f"{case.command} {case.time_limit}", war, (number, part * seconds))
        until_next_second()
        if code and code not in STOPPED:
            return [f"attacked by {signal.Signals(number).name}, it ends with exit code {code}"]
    for _ in range(MAX_CALLS):
        code, _ = call(case.command, war)
        until_next_second()
        if code:
            return [f"resumed, it ends with exit code {code}"]
        if read_record(war / "run").get("status") == "finished":
            return list(differences(peace, war))
    return ["resumed again and again, it never finishes"]


# Comparison -----------------------------------------------------------------------------------------------------------


def differences(peace: Path, war: Path) -> Iterator[str]:
    """In what two finished runs differ, in words."""
    for path, read in ((peace, files), (war, files)):
        if leftovers := [name for name in read(path) if name.endswith((".tmp", ".damaged", ".lock~"))]:
            yield f"{path.name} has leftovers {leftovers}"
    if (one := folders(peace)) != (other := folders(war)):
        yield f"folders {sorted(one)} and {sorted(other)}"
    yield from different("record", plain_record(peace / "run"), plain_record(war / "run"))
    for name in ("last.ckpt", "best.ckpt"):
        yield from different(name, checkpoint(peace / "run", name), checkpoint(war / "run", name))
    yield from different("points", points(peace / "run"), points(war / "run"))


def different(name: str, one: Any, other: Any) -> Iterator[str]:
    """Where two nests of plain values and tensors differ; the first places only."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            yield from different(f"{name}/{key}", one.get(key, "nothing"), other.get(key, "nothing"))
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or not torch.equal(one, other):
            yield f"{name}: tensors differ"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from different(f"{name}/{place}", *pair)
    elif type(one) is not type(other) or one != other:
        yield f"{name}: {str(one)[:80]} and {str(other)[:80]}"


def files(folder: Path) -> list[str]:
    """Names of all files."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


def folders(folder: Path) -> set[str]:
    """Run folders: an attack leaves no second one."""
    return {path.name for path in folder.iterdir() if path.is_dir() and path.name != "logs"}


def read_record(run: Path) -> dict[str, Any]:
    """The record, empty if there is none yet."""
    path = run / "record.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def plain_record(run: Path) -> dict[str, Any]:
    """The record without what two runs need not share."""
    return without(read_record(run), VOLATILE)


def without(value: Any, names: set[str]) -> Any:
    """A nest of plain values without the entries of these names."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def checkpoint(run: Path, name: str) -> dict[str, Any]:
    """Weights, optimizer, counters and schedule; of callbacks what is no time of day and no path."""
    path = run / "checkpoints" / name
    if not path.exists():
        return {}
    content = torch.load(path, weights_only=True)
    callbacks = {name: state for name, state in content.pop("callbacks", {}).items() if "Timer" not in name}
    content.pop("loops", None)  # Lightning's counts of batches since the start of the process
    return content | {"callbacks": without(callbacks, {"seconds", "started"})}


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's points of each tag, without those that tell time."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = (tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/") and "seconds" not in tag)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


# All cases ------------------------------------------------------------------------------------------------------------


def side_by_side(cases: list[Case], jobs: int, folder: Path, tell: Callable[[Case, list[str]], None]) -> None:
    """Carry all cases out, each in a process of its own, `jobs` at a time."""
    todo, active = list(cases), {}
    while todo or active:
        while todo and len(active) < jobs:
            case = todo.pop(0)
            place = folder / f"{case.number}"
            if (pid := os.fork()) == 0:
                place.mkdir()
                found = carry_out(case, place)
                (place / "differences.json").write_text(json.dumps(found), encoding="utf-8")
                os._exit(0)
            active[pid] = case
        pid, _ = os.wait()
        case = active.pop(pid)
        path = folder / f"{case.number}" / "differences.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else ["the case itself failed"]
        tell(case, found)
        if not found:
            shutil.rmtree(folder / f"{case.number}")


def run_all(runs: int, seed: int, jobs: int, only: int | None) -> int:
    """All cases; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    text = folder / "small.txt"
    text.write_text("".join(f"{n}: the moss grows near the {n % 7}th fern.\n" for n in range(400)), encoding="utf-8")
    numbers = range(runs) if only is None else [only]
    cases = [random_case(number, seed, text) for number in numbers]
    failed: list[int] = []

    def tell(case: Case, found: list[str]) -> None:
        attacks = ", ".join(f"{signal.Signals(number).name} {part:.2f}" for number, part in case.attacks)
        print(f"case {case.number}: {'differs' if found else 'equal'} ({attacks})", flush=True)
        if found:
            failed.append(case.number)
            print(f"  python -m app {case.command}")
            print("\n".join(f"  {line}" for line in found[:10]), flush=True)

    side_by_side(cases, jobs, folder, tell)
    print(f"{len(failed)} of {len(cases)} cases differ" + (f": {failed}; see {folder}" if failed else ""))
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill, stop and resume random small runs.")
    parser.add_argument("--runs", type=int, default=100, help="number of cases")
    parser.add_argument("--seed", type=int, default=1, help="seed of the cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases side by side")
    parser.add_argument("--only", type=int, help="number of a single case to repeat")
    options = parser.parse_args()
    sys.exit(run_all(options.runs, options.seed, options.jobs, options.only))
