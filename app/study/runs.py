"""`python -m app runs`: which runs there are, how far and how well they got, how they ended, how to go on with them.

All stands in each run's record. Whether a run goes on that its record calls running, the lock of its folder tells: a
process lets go of it however it ends. What cannot be read is a row that says so. Imports no torch.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, cast, get_args

from rich.console import Console
from rich.table import Table

from app.output.numbers import short
from app.output.progress import say
from app.output.tables import new_console, new_table
from app.run.folders import CONFIG, RUNS, began, is_held
from app.study.processes import diverged
from callbacks.atomic import json_text
from callbacks.record_file import CHECKPOINTS, RECORD, last_checkpoint, read_record

State = Literal["running", "interrupted", "failed", "damaged", "finished"]
Sort = Literal["name", "date", "best", "parameters", "model", "data", "state"]
STATUSES = ("running", "interrupted", "failed", "finished")  # that a record has, with a reason or without
READ = {  # of a record, and what it must be
    "status": str, "model": str, "data": str, "data_options": dict, "seed": int, "parameters": int, "step": int,
    "max_steps": int, "tokens": int, "flops": int | float, "seconds": int | float, "growth_events": list,
}  # fmt: skip
FACTS = ("model", "data", "seed", "parameters", "step", "max_steps", "tokens", "flops", "seconds")  # taken as they are
LESS_IS_BETTER = {"loss": "loss {:.3f}", "bits_per_char": "{:.3f} bits/char"}  # metrics, as the console shows them
TITLES = ("name", "model", "parameters", "data", "step", "best validation", "growths", "state")
TEXTS = {"name", "model", "data", "state"}  # columns that are no numbers
SPEAKING = {"model", "data", "best validation", "state"}  # columns whose cells need no title
NAME = 24  # characters in which a name can still be read, on several lines
UNLIMITED = 10_000  # columns where nobody's terminal ends: one line a run


@dataclass(frozen=True)
class Run:
    """A run, as --json has it; None stands for what its record does not tell, or what there is not.

    Attributes:
        name: Its folder, below the one that was asked for.
        folder: Its folder, as commands name it.
        state: running; interrupted, by a signal or a kill; failed; damaged, if the record cannot be read; finished.
        why: The error that it failed by, or what is wrong with its record.
        go_on: The command that goes on from its last checkpoint.
        began: When it was begun or resumed, in ISO 8601.
        model, data, corpus, seed: What is trained on what; the text, if there is one.
        parameters, growths: Its size at present, and how many times it grew.
        step, max_steps, tokens, flops, seconds: How far it got; it has no end if `max_steps` is 0.
        metric, best, best_step: The metric that judges the task, such as val/accuracy, its best value, and when.
    """

    name: str
    folder: str
    state: State
    why: str | None = None
    go_on: str | None = None
    began: str | None = None
    model: str | None = None
    data: str | None = None
    corpus: str | None = None
    seed: int | None = None
    parameters: int | None = None
    growths: int | None = None
    step: int | None = None
    max_steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None


def runs(folder: Path = RUNS, *, sort: Sort = "name", filter: str | None = None, json: bool = False) -> int:
    """List the runs below a folder, at any depth: how far, how well, in which state, and how to go on with them.

    Args:
        folder: Where to look, also without --folder: a folder of runs, such as that of a study, or a run's own.
        sort: Order of the runs; by date the newest come first, by best those of one metric stand together.
        filter: Words, in one pair of quotes if several, that must all occur in a run's name, model, data or state.
        json: Whether to print a list of objects for programs instead of a table.

    Returns:
        0, also if there is no run.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"FOLDER {folder} {what}; name a folder of runs, or train with `python -m app fit`")
    found = [read_run(path, folder) for path in run_folders(folder)]
    chosen = in_order([run for run in found if matches(run, filter or "")], sort)
    if json:
        print(json_text([asdict(run) for run in chosen], indent=1))
    elif not found:
        print(f"{folder} has no runs yet; train with `python -m app fit`")
    elif not chosen:
        print(f"--filter {filter}: none of the {len(found)} runs in {folder} has these words")
    else:
        show(chosen, folder, new_console(UNLIMITED))
    return 0


# Reading --------------------------------------------------------------------------------------------------------------


def run_folders(folder: Path) -> Iterator[Path]:
    """The folder itself, if it is a run's, or those of all runs below; not hidden ones, and none again by a link."""
    places, seen = [str(folder)], set()
    for top in places:
        for place, folders, files in os.walk(top):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            if CONFIG in files or RECORD in files or CHECKPOINTS in folders:
                yield Path(place)
                folders.clear()
            folders[:] = [name for name in folders if not name.startswith(".")]
            links = (Path(place, name) for name in folders)
            places += [str(link) for link in links if link.is_symlink()]  # looked into after all that is no link


def read_run(folder: Path, top: Path) -> Run:
    """The run in a folder below `top`, whatever is there of it."""
    record: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    status, why = "running", None  # before its record is first written
    try:
        if (folder / RECORD).exists():
            record = read_record(folder / RECORD)
            facts = facts_of(record)
            status, _, why = record["status"].partition(": ")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        record, status, why = {}, "damaged", one_line(error)
    state = state_of(folder, status)
    can_go_on = state not in ("running", "finished") and last_checkpoint(folder).is_file() and not diverged(record)
    return Run(
        name=folder.name if folder == top else str(folder.relative_to(top)),
        folder=str(folder),
        state=state,
        why=why or None,
        go_on=f"python -m app fit --ckpt_path {shlex.quote(str(folder))}" if can_go_on else None,
        began=datetime.fromtimestamp(began(folder)[0] / 1e9, UTC).isoformat() if began(folder)[0] else None,
        **facts,
    )


def one_line(error: Exception) -> str:
    """What is wrong with a record."""
    text = str(error) if isinstance(error, ValueError) else f"{RECORD} is not whole: {type(error).__name__} {error}"
    return " ".join(text.split())


def state_of(folder: Path, status: str) -> State:
    """The state of the run whose record says `status`, which is asked no further if it tells of an end."""
    if status not in ("running", "damaged"):
        return cast(State, status)
    if is_held(folder):
        return "running"
    return "interrupted" if status == "running" else "damaged"


def facts_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a record tells of its run; ValueError, KeyError, TypeError or AttributeError if it is not whole."""
    for name, kind in READ.items():
        is_known = name != "status" or str(record[name]).partition(": ")[0] in STATUSES
        if not isinstance(record[name], kind) or not is_known:
            raise ValueError(f"{RECORD} is not whole: its {name} is {record[name]!r}")
    corpus = record["data_options"].get("corpus")
    if isinstance(corpus, list):
        corpus = f"[{','.join(Path(file).name for file in corpus)}]"
    facts = {"corpus": corpus and str(corpus), "growths": len(record["growth_events"])}
    return facts | {name: record[name] for name in FACTS} | best_validation(record)


def best_validation(record: dict[str, Any]) -> dict[str, Any]:
    """The best of a run's validations by the metric that judges its task; nothing before the first of them.

    That is the metric whose chance the record tells, or else the first that it has of bits per character, accuracy and
    loss.
    """
    for name in (*record.get("chance", {}), "bits_per_char", "accuracy", "loss"):
        metric = f"val/{name}"
        values = [(p[metric], p["step"]) for p in record["history"] if isinstance(p.get(metric), int | float)]
        if values:
            best, step = min(values, key=lambda value: cost(name, value[0]))
            return {"metric": metric, "best": best, "best_step": step}
    return {}


# Choosing -------------------------------------------------------------------------------------------------------------


def matches(run: Run, words: str) -> bool:
    """Whether all the words occur in the run's name, model, data or state, in whatever case."""
    text = " ".join(filter(None, (run.name, run.model, run.data, run.corpus, run.state))).lower()
    return all(word in text for word in words.lower().split())


def in_order(found: Sequence[Run], sort: Sort) -> list[Run]:
    """The runs in order: of equal ones by name, and last those of which it is not known."""
    return sorted(found, key=lambda run: (rank(run, sort) is None, rank(run, sort), natural(run)))


def rank(run: Run, sort: Sort) -> Any:
    """What runs are put in order by; None where it is not known."""
    if sort == "date":
        return run.began and -datetime.fromisoformat(run.began).timestamp()
    if sort == "best":
        return None if run.best is None else (run.metric, cost(metric_name(run), run.best))
    if sort == "state":
        return get_args(State).index(run.state)
    return natural(run) if sort == "name" else getattr(run, sort)


def cost(metric: str, value: float) -> float:
    """A metric's value, or its negative, so that less is better."""
    return value if metric in LESS_IS_BETTER else -value


def natural(run: Run) -> list[Any]:
    """A key by which run-10 comes after run-9, and lr0.5 after lr0.25."""
    parts = re.split(r"(\d+(?:\.\d+)?)", run.name)  # text and numbers in turn
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


# Showing --------------------------------------------------------------------------------------------------------------


def show(found: Sequence[Run], folder: Path, console: Console) -> None:
    """Print the runs as a table, or a paragraph each where the terminal is too narrow for it, and what to do."""
    if table := table_of(found, console):
        console.print(table, highlight=False, markup=False)
    else:
        for run in found:
            say(console, paragraph(run, console.width))
    counts = Counter(run.state for run in found)
    states = ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state])
    say(console, f"{len(found)} run{'s' * (len(found) > 1)} in {folder}: {states}")
    for run in found:
        if note := remark(run):
            say(console, f"{run.name}: {note}")


def table_of(found: Sequence[Run], console: Console) -> Table | None:
    """A row a run, long names on several lines if they must be; None if the console is too narrow even so."""

    def width() -> int:
        return console.measure(table, options=console.options.update_width(UNLIMITED)).maximum

    table = new_table(TITLES)
    table.padding = (0, 1, 0, 0)
    for column, title in zip(table.columns, TITLES, strict=True):
        column.justify = "left" if title in TEXTS else "right"
    table.columns[0].overflow = "fold"  # the end of a name is what tells it from others
    for run in found:
        table.add_row(*cells(run))
    if width() > console.width:
        data = table.columns[TITLES.index("data")]
        data.no_wrap, data.max_width = False, max(len(word) for run in found for word in shown_data(run).split())
    longest = max(len(run.name) for run in found)
    return table if width() - max(0, longest - NAME) <= console.width else None


def cells(run: Run) -> list[str]:
    """The run's row: a dash for what is not known."""
    size = "-" if run.parameters is None else short(run.parameters)
    steps = "-" if run.step is None else f"{run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps else "")
    growths = "-" if run.growths is None else str(run.growths)
    return [run.name, run.model or "-", size, shown_data(run), steps, shown_best(run), growths, run.state]


def paragraph(run: Run, width: int) -> str:
    """The run in words: its name, and below it what the table has of it."""
    named = zip(TITLES, cells(run), strict=True)
    known = [(title, text) for title, text in named if text != "-" and title != "name"]
    words = [text if title in SPEAKING else f"{title} {text}" for title, text in known]
    return f"{run.name}\n" + fill(", ".join(words), width, initial_indent="  ", subsequent_indent="  ")


def shown_data(run: Run) -> str:
    """The task, and the text's name if there is one."""
    return " ".join(filter(None, (run.data, run.corpus and Path(run.corpus).name))) or "-"


def metric_name(run: Run) -> str:
    """The metric that judges the run's task, without its split."""
    return (run.metric or "").removeprefix("val/")


def shown_best(run: Run) -> str:
    """The best validation: 2.340 bits/char, accuracy 0.988."""
    name = metric_name(run)
    return "-" if run.best is None else LESS_IS_BETTER.get(name, name.replace("_", " ") + " {:.3f}").format(run.best)


def remark(run: Run) -> str:
    """Why a run failed or cannot be read, and how to go on; empty for one that goes on or is finished."""
    anew = "it has no checkpoint to go on from" if run.state == "interrupted" and not run.go_on else None
    return "; ".join(filter(None, (run.why, run.go_on and f"go on with `{run.go_on}`", anew)))
