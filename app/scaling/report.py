"""How scaling laws come out: tables for the terminal and Markdown, a figure, a study's file, CSV, and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from app.output.events import write_summary
from app.output.figures import Panel, Series, save, scaling_figure
from app.output.tables import csv_text, new_table
from app.scaling.survey import LEGEND, NOT_DETERMINED, Attempt, Survey, losses_of, sections_of, sizes_of
from app.study.study import SCALING_FILE, Study
from callbacks.atomic import write_text

CURVE_POINTS = 100
PANELS = {"N": "parameters N", "D": "training tokens D"}
CSV_COLUMNS = ("run", "model", "seed", "parameters", "tokens", "flops")


# Tables ---------------------------------------------------------------------------------------------------------------


def table(survey: Survey, level: float) -> Table:
    """What was found of one model, for the terminal."""
    drawn = new_table(("", "value"), f"{survey.model}, {len(survey.points)} runs")
    drawn.add_column(f"{level:.0%} interval")
    for rows in sections_of(survey):
        for place, row in enumerate(rows, start=1):
            drawn.add_row(*row, end_section=place == len(rows))
    return drawn


def scaling_markdown(surveys: Sequence[Survey], study: Study) -> str:
    """The same for a file, with the figure, and what was skipped."""
    parts = [f"# Scaling of {study.options['metric']}", "![the laws](scaling.png)"]
    parts += survey_markdown(surveys, study.options["intervals"])
    parts += [LEGEND, *skipped_markdown(study.findings["skipped"])]
    return "\n\n".join(parts) + "\n"


def skipped_markdown(lines: Sequence[str]) -> list[str]:
    """The runs that are no points, and why, as paragraphs; none without any."""
    return ["Skipped:", "\n".join(f"- {line}" for line in lines)] if lines else []


def survey_markdown(surveys: Sequence[Survey], level: float) -> Iterator[str]:
    """A heading and a table for each model, as paragraphs."""
    for survey in surveys:
        rows = [row for section in sections_of(survey) for row in section]
        lines = [("", "value", f"{level:.0%} interval"), (":--", "--:", ":--"), *rows]
        yield f"### {survey.model}, {len(survey.points)} runs"
        yield "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


# Figure ---------------------------------------------------------------------------------------------------------------


def drawn_law(model: str, law: Attempt) -> Series:
    """Points of a law of one variable, its line up to twice the largest size, and its band."""
    (sizes,) = sizes_of(law.points, law.variables).values()
    points, label = (sizes, losses_of(law.points)), f"{model}, {law.at}"
    if isinstance(law.fitted, str) or law.fitted.undetermined:
        return Series(label, points)
    x = np.geomspace(sizes.min(), 2 * sizes.max(), CURVE_POINTS)
    return Series(label, points, (x, law.fitted.law.predict(x)), law.fitted.band(x))


def drawn_frontier(survey: Survey) -> Series | None:
    """Runs by budget and size, and the optima with their band, where they are determined."""
    flops, sizes = [point.flops for point in survey.points], [point.parameters for point in survey.points]
    if isinstance(survey.frontier, str):
        return None
    edge, label = survey.frontier, f"{survey.model}, runs"
    if edge.determined is None:
        return Series(f"{label}; optimum {NOT_DETERMINED}", (flops, sizes))
    x, measured = np.geomspace(*edge.determined, CURVE_POINTS), edge.measured
    low, high = (np.clip(end, measured.smallest, measured.largest) for end in edge.band(x))
    return Series(label, (flops, sizes), (x, edge.sizes(x)[0]), (low, high))


def draw(surveys: Sequence[Survey], metric: str) -> Figure:
    """L(N), L(D) and, where one is known, the compute-optimal frontier."""
    y_label = f"{metric} ({'bits a character' if 'bits_per_char' in metric else 'nats a token'})"
    panels = [
        Panel(f"L({variable})", x_label, y_label, [drawn_law(s.model, s.alone[variable]) for s in surveys])
        for variable, x_label in PANELS.items()
    ]
    edges = [drawn_frontier(survey) for survey in surveys]
    if any(edges):
        panels.append(Panel("compute-optimal size", "training compute C (FLOPs)", "parameters N", edges, decades=True))
    return scaling_figure(panels)


# Files ----------------------------------------------------------------------------------------------------------------


def csv_lines(surveys: Sequence[Survey], metric: str) -> Iterator[Sequence[Any]]:
    """A line a run."""
    yield *CSV_COLUMNS, metric
    for survey in surveys:
        for point in survey.points:
            yield *(getattr(point, name) for name in CSV_COLUMNS), point.loss


def write(out: Path, surveys: Sequence[Survey], study: Study, tensorboard: bool) -> None:
    """Write every file, each whole or not at all."""
    text, figure = scaling_markdown(surveys, study), draw(surveys, study.options["metric"])
    save(figure, out / "scaling.png")
    write_text(out / "scaling.md", text)
    write_text(out / "scaling.csv", csv_text(csv_lines(surveys, study.options["metric"])))
    if tensorboard:
        write_summary(out / "tensorboard", {"scaling.png": figure}, text)
    study.save(out, SCALING_FILE)
