"""How scaling laws come out: tables for the terminal and Markdown, a figure, JSON, CSV, and events of TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from app.cli.invocation import command_line
from app.output.events import new_events
from app.output.figures import Panel, Series, pixels, save, scaling_figure
from app.output.tables import csv_text, new_table
from app.scaling.survey import Attempt, Survey, losses_of, rows_of, sizes_of
from callbacks.atomic import write_json, write_text

CURVE_POINTS = 100
PANELS = {"L(N)": "parameters N", "L(D)": "training tokens D"}


# Tables ---------------------------------------------------------------------------------------------------------------


def table(found: Survey, level: float) -> Table:
    """What was found of one model, for the terminal."""
    drawn = new_table(("", "value"), f"{found.model}, {len(found.points)} runs")
    drawn.add_column(f"{level:.0%} interval")
    for rows in rows_of(found):
        for place, row in enumerate(rows):
            drawn.add_row(*row, end_section=place == len(rows) - 1)
    return drawn


def scaling_markdown(surveys: Sequence[Survey], about: dict[str, Any]) -> str:
    """The same for a file, with the figure, and what was skipped."""
    parts = [f"# Scaling of {about['metric']}", "![the laws](scaling.png)"]
    parts += survey_markdown(surveys, about["intervals"])
    if about["skipped"]:
        parts += ["Skipped:", "\n".join(f"- {line}" for line in about["skipped"])]
    return "\n\n".join(parts) + "\n"


def survey_markdown(surveys: Sequence[Survey], level: float) -> Iterator[str]:
    """A heading and a table for each model, as paragraphs."""
    for found in surveys:
        rows = [row for rows in rows_of(found) for row in rows]
        lines = [("", "value", f"{level:.0%} interval"), (":--", "--:", ":--"), *rows]
        yield f"### {found.model}, {len(found.points)} runs"
        yield "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


# Figure ---------------------------------------------------------------------------------------------------------------


def drawn_law(found: Attempt, model: str, variable: str) -> Series:
    """Points of one law, its line up to twice the largest size, and its band."""
    sizes = sizes_of(found.points, variable)[variable]
    points, label = (sizes, losses_of(found.points)), f"{model}, {found.at}"
    if isinstance(found.fitted, str) or found.fitted.undetermined:
        return Series(label, points)
    x = np.geomspace(sizes.min(), 2 * sizes.max(), CURVE_POINTS)
    return Series(label, points, (x, found.fitted.law.predict(x)), found.fitted.band(x))


def drawn_frontier(found: Survey) -> Series | None:
    """Runs by budget and size, and the sizes of least loss with their band."""
    flops, sizes = [point.flops for point in found.points], [point.parameters for point in found.points]
    if isinstance(found.frontier, str):
        return None
    x = np.geomspace(found.budgets().min(), found.budgets().max(), CURVE_POINTS)
    return Series(f"{found.model}, runs", (flops, sizes), (x, found.frontier.sizes(x)[0]), found.frontier.band(x))


def draw(surveys: Sequence[Survey], metric: str) -> Figure:
    """L(N), L(D) and, where one is known, the compute-optimal frontier."""
    unit = "bits a character" if "bits_per_char" in metric else "nats a token"
    panels = []
    for place, (name, x_label) in enumerate(PANELS.items()):
        series = [drawn_law(one.attempts[place], one.model, name[2]) for one in surveys]
        panels.append(Panel(name, x_label, f"{metric} ({unit})", series))
    edges = [drawn_frontier(one) for one in surveys]
    if any(edges):
        panels.append(Panel("compute-optimal size", "training compute C (FLOPs)", "parameters N", edges, decades=True))
    return scaling_figure(panels)


# Files ----------------------------------------------------------------------------------------------------------------


def csv_lines(surveys: Sequence[Survey], metric: str) -> Iterator[Sequence[Any]]:
    """A line a run."""
    yield "run", "model", "seed", "parameters", "tokens", "flops", metric
    for found in surveys:
        for p in found.points:
            yield p.run, p.model, p.seed, p.parameters, p.tokens, p.flops, p.loss


def write(out: Path, surveys: Sequence[Survey], about: dict[str, Any], tensorboard: bool) -> None:
    """Write every file, each whole or not at all."""
    text, figure = scaling_markdown(surveys, about), draw(surveys, about["metric"])
    save(figure, out / "scaling.png")
    write_text(out / "scaling.md", text)
    write_text(out / "scaling.csv", csv_text(csv_lines(surveys, about["metric"])))
    if tensorboard:
        write_events(out / "tensorboard", pixels(figure), text)
    found = [one.plain() for one in surveys]
    write_json(out / "scaling.json", {"command": command_line(), **about, "models": found}, indent=2)


def write_events(folder: Path, image: Any, text: str) -> None:
    """TensorBoard's events of the figure and the tables."""
    with new_events(folder) as writer:
        writer.add_image("scaling/laws", image, 0, dataformats="HWC")
        writer.add_text("scaling/tables", text, 0)
