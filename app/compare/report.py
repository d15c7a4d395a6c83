"""How a comparison comes out: a table for each task, and a CSV of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from rich.console import Console

from app.compare.findings import LABELS, QUALITIES, Row, chosen_runs
from app.output.intervals import signed, spread
from app.output.numbers import short
from app.output.tables import csv_text, markdown_table, new_table
from app.study.study import Study
from callbacks.atomic import write_text

COLUMNS = ("model", "width", "parameters", "tokens", "FLOPs", "seconds", "lr x")
CSV_COLUMNS = (
    "run", *LABELS, "unit", "factor", "seed", "chosen", "status", "step", "parameters", "tokens", "flops", "seconds",
    "val_loss",
)  # fmt: skip
LEGEND = (
    "Mean ± standard deviation over the seeds, on the test split, at the end of the run. lr x: the learning rate as a "
    "multiple of the experiment file's, chosen by validation loss with the first seed; * marks an end of the grid. "
    "- NAME: difference from that model, paired by seed, with Student's 95 % interval. seconds: of training, without "
    "validation, with as many runs side by side as there were workers. A learning rate at which a run diverged is "
    "never chosen."
)


def rate(row: Row) -> str:
    """The learning rate chosen."""
    return "all diverged" if row.factor is None else f"{row.factor:g}{'*' if row.at_edge else ''}"


def names_of_slices(rows: Sequence[Row]) -> list[str]:
    """Slices that all models were tested on."""
    names = [name for name in next((row.values for row in rows if row.values), {}) if name]
    return [name for name in names if all(name in row.values for row in rows if row.values)]


def heading(rows: Sequence[Row], baseline: str) -> list[str]:
    """Names of the columns of one task's table."""
    quality = QUALITIES.get(rows[0].quality, rows[0].quality)
    compared = [f"- {baseline}"] if any(row.difference for row in rows) else []
    return [*COLUMNS, quality, *compared, *names_of_slices(rows)]


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """One line of a task's table."""
    quality = spread(row.values[""]) if row.values.get("") else "-"
    if row.diverged:
        quality += f", {row.diverged} diverged"
    compared = [signed(row.difference) if row.difference else ""] if any(r.difference for r in rows) else []
    sliced = [spread(row.values[name]) if name in row.values else "-" for name in names_of_slices(rows)]
    return [
        row.model, str(row.d_model), short(row.parameters), short(row.tokens), f"{row.flops:.3g}",
        f"{row.seconds:.0f}", rate(row), quality, *compared, *sliced,
    ]  # fmt: skip


def task_table(rows: Sequence[Row], baseline: str) -> str:
    """One task's table in Markdown."""
    return markdown_table(heading(rows, baseline), (cells(row, rows) for row in rows))


def comparison_markdown(study: Study, rows: Sequence[Row]) -> str:
    """The whole report."""
    parts = ["# Comparison", f"`{study.command}`"]
    for task, group in groupby(rows, attrgetter("task")):
        parts += [f"## {task}", task_table(list(group), rows[0].model)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table a task: what decides, without the slices, which the files have."""
    for task, group in groupby(rows, attrgetter("task")):
        own = list(group)
        titles, hidden = heading(own, rows[0].model), len(names_of_slices(own))
        shown = len(titles) - hidden
        table = new_table(titles[:shown], task)
        for row in own:
            table.add_row(*cells(row, own)[:shown])
        console.print(table, highlight=False)


def runs_csv(study: Study) -> str:
    """A line for each run, with all that its test measured."""
    runs, chosen = study.runs(), set(chosen_runs(study))
    tests = list(dict.fromkeys(key for run in runs for key in run.record.get("test", {})))
    rows = [[*CSV_COLUMNS, *tests]]
    for run in runs:
        labels, record = run.labels, run.record
        known = [labels[name] for name in (*LABELS, "unit", "factor", "seed")]
        spent = [record[name] for name in ("status", "step", "parameters", "tokens", "flops", "seconds")]
        measured = [record["final"].get("val/loss"), *(record.get("test", {}).get(key) for key in tests)]
        rows.append([run.name, *known, run.name in chosen, *spent, *measured])
    return csv_text(rows)


def report_comparison(study: Study, rows: Sequence[Row], folder: Path, console: Console) -> None:
    """Print the comparison, and write compare.md and compare.csv."""
    show(rows, console)
    write_text(folder / "compare.md", comparison_markdown(study, rows))
    write_text(folder / "compare.csv", runs_csv(study))
