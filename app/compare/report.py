"""How a comparison comes out: for each task and budget who is how good, how fast, and by what search; and a CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from app.compare.findings import LABELS, QUALITIES, Row, chosen_runs, tables
from app.compare.learning import COSTS, FAR, LEVEL, Reach, at_equal, reach, slowest
from app.output.events import write_summary
from app.output.figures import LearningCurve, learning_figure
from app.output.intervals import signed, spread
from app.output.numbers import number, short
from app.output.tables import csv_text, markdown_table, new_table
from app.study.study import StudiedRun, Study
from callbacks.atomic import write_text

COLUMNS = ("model", "width", "parameters", "tokens", "FLOPs", "seconds", "lr x")
UNITS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
CSV_COLUMNS = (
    "run", *LABELS, "unit", "trial", "rung", "factor", "configuration", "seed", "chosen", "status", "step",
    "parameters", "tokens", "flops", "seconds", "val_loss",
)  # fmt: skip
LEGEND = (
    "Mean ± standard deviation over the seeds, on the test split, at the end of the run. lr x: the learning rate as a "
    "multiple of the recipe's, chosen by validation loss; * marks an end of the range. - NAME: difference from that "
    "model, with Welch's 95 % interval; p: corrected by Holm's method for the differences of the table; better and "
    "worse: p < 0.05. untrained: no seed ended validation above chance, by a fiftieth of the way from there to "
    "perfect; such a model is compared with none. seconds: of training, without validation, with as many runs side by "
    "side as there were workers."
)
LEARNING = (
    "Accuracy or bits/char at a cost, and cost to .9, are of validations, between which curves are taken for straight. "
    "at: mean ± standard deviation at the greatest cost that all models had; who needs more for a step is read off "
    "before its schedule ends. to .9: the median over the seeds [least .. greatest]; not by: the least cost at which a "
    f"seed was not there, which says little below {FAR} times the slowest learner's."
)
SEARCHED = (
    "Trials of each model, of which one was chosen by validation alone, with a seed that is not reported; what is not "
    "told is as in the experiment file."
)

FIRST_SEED = "The learning rate was chosen with the first seed, which is counted, too."


# Who is how good ------------------------------------------------------------------------------------------------------


def rate(row: Row) -> str:
    """The learning rate chosen."""
    return "all diverged" if row.factor is None else f"{row.factor:g}{'*' if row.at_edge else ''}"


def names_of_slices(rows: Sequence[Row]) -> list[str]:
    """Slices that all models were tested on."""
    names = [name for name in next((row.values for row in rows if row.values), {}) if name]
    return [name for name in names if all(name in row.values for row in rows if row.values)]


def quality_of(rows: Sequence[Row]) -> str:
    """What the rows are measured by, in words."""
    name = next((row.quality for row in rows if row.values), rows[0].quality)
    return QUALITIES.get(name, name)


def is_judged(rows: Sequence[Row]) -> bool:
    """Whether there is a word on any of the rows."""
    return any(row.verdict for row in rows)


def heading(rows: Sequence[Row], baseline: str) -> list[str]:
    """Names of the columns of one table."""
    compared = [f"- {baseline}", "p"] if any(row.difference for row in rows) else []
    judged = ["verdict"] if is_judged(rows) else []
    return [*COLUMNS, quality_of(rows), *compared, *judged, *names_of_slices(rows)]


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """One line of a table."""
    quality = spread(row.values[""]) if row.values.get("") else "-"
    if row.diverged:
        quality += f", {row.diverged} diverged"
    compared = [signed(row.difference) if row.difference else "", p_value(row)]
    compared = compared if any(r.difference for r in rows) else []
    sliced = [spread(row.values[name]) if name in row.values else "-" for name in names_of_slices(rows)]
    return [
        row.model, str(row.d_model), short(row.parameters), short(row.tokens), f"{row.flops:.3g}",
        f"{row.seconds:.0f}", rate(row), quality, *compared, *([judged(row)] if is_judged(rows) else []), *sliced,
    ]  # fmt: skip


def p_value(row: Row) -> str:
    """The corrected p value."""
    if row.p is None:
        return ""
    return "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"


def judged(row: Row) -> str:
    """The verdict, and how many seeds it is of where not all of them learned."""
    partly = row.learned is not None and 0 < row.learned < len(row.seeds)
    return f"{row.verdict}, {row.learned} of {len(row.seeds)} learned" if partly else row.verdict


def quality_table(rows: Sequence[Row], baseline: str) -> str:
    """The table of one setting in Markdown, and how many tests are in it."""
    table = markdown_table(heading(rows, baseline), (cells(row, rows) for row in rows))
    tests = sum(row.p is not None for row in rows)
    return f"{table}\n\nDifferences tested in this table: {tests}." if tests else table


# Who is how fast ------------------------------------------------------------------------------------------------------


def amount(value: float, cost: str) -> str:
    """A cost in its unit."""
    return {"tokens": short(value), "flops": f"{value:.3g}", "seconds": number(round(value, 1))}[cost]


def in_words(found: Reach, cost: str, slow: float | None) -> str:
    """What it took to be right nine times in ten, or until when it did not come about."""
    if not found.costs:
        return "-"
    known, all_seeds = found.known, len(found.costs)
    partly = f", {len(known)} of {all_seeds} seeds" if 0 < len(known) < all_seeds else ""
    if found.median is not None:
        return f"{amount(found.median, cost)} [{amount(min(known), cost)} .. {amount(max(known), cost)}]{partly}"
    far = f" ({found.censored / slow:.2g} x the slowest)" if slow and found.censored < FAR * slow else ""
    return f"not by {amount(found.censored, cost)}{far}{partly}"


def learning_table(study: Study, rows: Sequence[Row]) -> str:
    """The validations of one setting at equal costs, and for accuracies what it takes to .9; empty without any."""
    equal = [at_equal(study, rows, cost) for cost in COSTS]
    if any(each.place is None for each in equal):
        return ""
    titles = [f"{quality_of(rows)} at {amount(each.place or 0, each.cost)} {UNITS[each.cost]}" for each in equal]
    lines = [[row.model, *(spread(e.values[n]) if e.values[n] else "-" for e in equal)] for n, row in enumerate(rows)]
    if all(row.quality == "accuracy" for row in rows if row.values):
        titles += [f"{UNITS[cost]} to {LEVEL:g}".replace("0.", ".") for cost in COSTS]
        reaches = [[reach(study, row, cost) for row in rows] for cost in COSTS]
        for number_of_row, line in enumerate(lines):
            line += [
                in_words(found[number_of_row], cost, slowest(found)) for cost, found in zip(COSTS, reaches, strict=True)
            ]
    return markdown_table(["model", *titles], lines)


# By what search -------------------------------------------------------------------------------------------------------


def remark(row: Row) -> str:
    """What is to be known of a search."""
    search = row.search
    low, high = search["span"]
    said = [] if search["learned"] else ["none learned, so that the experiment file was taken as it is"]
    if search["widenings"]:
        said.append(f"learning rates widened to {low:g} .. {high:g}")
    if search["edge"]:
        said.append(f"the learning rate stands at the {search['edge']} end")
    if search["ends"]:
        said.append(f"at an end: {', '.join(search['ends'])}")
    return "; ".join(said)


def search_table(rows: Sequence[Row]) -> str:
    """How one setting was searched, and what was chosen; empty where nothing was."""
    searched = [row for row in rows if row.search.get("trials")]
    if not searched:
        return ""
    lines = [
        [row.model, str(row.search["trials"]), rate(row), in_options(row) or "as in the file", remark(row)]
        for row in searched
    ]
    return markdown_table(["model", "trials", "lr x", "chosen", "remarks"], lines)


def in_options(row: Row) -> str:
    """What was chosen beside the learning rate."""
    return ", ".join(f"{name} {json.dumps(value).strip(chr(34))}" for name, value in row.configuration.items())


# How they learn -------------------------------------------------------------------------------------------------------


def learning_curve(label: str, runs: Sequence[StudiedRun], metric: str) -> LearningCurve | None:
    """Validations of runs of one label, against tokens; None if there are none."""
    histories = [[(p["tokens"], p[metric]) for p in run.record["history"] if p.get(metric) is not None] for run in runs]
    drawn = [tuple(zip(*points, strict=True)) for points in histories if points]
    growths = [event["tokens"] for event in runs[0].record["growth_events"]] if runs else []
    return LearningCurve(label, drawn, growths) if drawn else None


def setting_name(row: Row) -> str:
    """Size and budget, as they stand in a file's name: 64-l2-3.00M."""
    layers = f"-l{row.num_layers}" if row.num_layers else ""
    return f"{row.d_model}{layers}-{short(row.budget)}"


def learning_figures(name: str, study: Study, rows: Sequence[Row]) -> dict[str, Figure]:
    """The curves of the validations of one task, a figure a setting, by file name; none for what was not validated."""
    figures: dict[str, Figure] = {}
    task, settings = rows[0].task, tables(rows)
    for table in settings:
        size = f"-{setting_name(table[0])}" if len(settings) > 1 else ""
        quality, runs = table[0].quality, study.runs(task=task)
        curves = [
            learning_curve(row.model, [run for run in runs if run.name in row.runs], f"val/{quality}") for row in table
        ]
        if drawn := [curve for curve in curves if curve]:
            figures[f"{name}-{task}{size}.png"] = learning_figure(
                drawn, title=setting_title(table) if size else task, x_label="training tokens",
                y_label=f"{QUALITIES.get(quality, quality)}, validation",
            )  # fmt: skip
    return figures


# All of it ------------------------------------------------------------------------------------------------------------


def setting_title(rows: Sequence[Row]) -> str:
    """Task, size and budget."""
    first = rows[0]
    layers = f"layers {first.num_layers}, " if first.num_layers else ""
    return f"{first.task}, width {first.d_model}, {layers}{short(first.budget)} {UNITS[first.unit]}"


def setting_paragraphs(study: Study, rows: Sequence[Row], baseline: str) -> Iterator[str]:
    """The tables of one setting."""
    yield quality_table(rows, baseline)
    yield from filter(None, (learning_table(study, rows), search_table(rows)))


def legends(rows: Sequence[Row]) -> list[str]:
    """What explains the tables."""
    kinds = {"trials": SEARCHED, "first_seed": FIRST_SEED}
    return [LEGEND, LEARNING, *(text for key, text in kinds.items() if any(row.search.get(key) for row in rows))]


def comparison_markdown(study: Study, rows: Sequence[Row]) -> str:
    """The whole report."""
    parts = ["# Comparison", f"`{study.command}`"]
    for table in tables(rows):
        parts += [f"## {setting_title(table)}", *setting_paragraphs(study, table, rows[0].model)]
    return "\n\n".join([*parts, *legends(rows)]) + "\n"


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table a setting: what decides, without the slices, which the files have."""
    for own in tables(rows):
        titles, hidden = heading(own, rows[0].model), len(names_of_slices(own))
        shown = len(titles) - hidden
        table = new_table(titles[:shown], setting_title(own))
        for row in own:
            table.add_row(*cells(row, own)[:shown])
        console.print(table, highlight=False)


def runs_csv(study: Study) -> str:
    """A line for each run, with all that its test measured."""
    runs, chosen = study.runs(), set(chosen_runs(study))
    tests = list(dict.fromkeys(key for run in runs for key in run.record.get("test", {})))
    rows = [[*CSV_COLUMNS, *tests]]
    for run in runs:
        labels, record = run.labels | {"configuration": json.dumps(run.labels["configuration"])}, run.record
        known = [labels.get(name) for name in CSV_COLUMNS[1 : CSV_COLUMNS.index("chosen")]]
        spent = [record[name] for name in ("status", "step", "parameters", "tokens", "flops", "seconds")]
        measured = [record["final"].get("val/loss"), *(record.get("test", {}).get(key) for key in tests)]
        rows.append([run.name, *known, run.name in chosen, *spent, *measured])
    return csv_text(rows)


def report_comparison(study: Study, rows: Sequence[Row], folder: Path, console: Console) -> None:
    """Print the comparison, and write compare.md, compare.csv and the study's own run in TensorBoard."""
    show(rows, console)
    text, figures = comparison_markdown(study, rows), {}
    write_text(folder / "compare.md", text)
    write_text(folder / "compare.csv", runs_csv(study))
    for _, own in groupby(rows, attrgetter("task")):
        figures |= learning_figures(folder.name, study, list(own))
    write_summary(folder, figures, text)
