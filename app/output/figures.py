"""Figures of fitted laws and of learning curves, as PNG files that are the same whenever they are drawn.

Series differ by colour (Okabe & Ito's palette, which colour-blind people tell apart), marker and dashes. Nothing here
uses pyplot, so figures need no display and leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

from app.output.intervals import Interval
from callbacks.atomic import save_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "os^Dvx+", ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))
PANEL_INCHES = (5.0, 3.8)
DPI = 150
MAX_INSIDE = 4  # labels of a legend that hides no points; more go below the axes


@dataclass(frozen=True)
class Series:
    """Points, a line and a band around it, of one label; whichever is missing is not drawn.

    Attributes:
        label: In the legend.
        points: x and y.
        line: x and y.
        band: The lower and upper y at the line's x.
    """

    label: str
    points: tuple[ArrayLike, ArrayLike] | None = None
    line: tuple[ArrayLike, ArrayLike] | None = None
    band: tuple[ArrayLike, ArrayLike] | None = None


@dataclass(frozen=True)
class Panel:
    """Series in one pair of logarithmic axes; labels name the units.

    Attributes:
        title: Above the axes.
        x_label: Below them.
        y_label: Beside them.
        series: What is drawn, one for each place in the palette: None leaves a place out.
        decades: Whether y spans decades, and has its ticks there; if not, at round numbers.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series | None]
    decades: bool = False


@dataclass(frozen=True)
class LearningCurve:
    """The runs of one label, such as seeds.

    Attributes:
        label: In the legend.
        runs: x and y of each run.
        growths: Where on the x axis growth took place.
    """

    label: str
    runs: Sequence[tuple[ArrayLike, ArrayLike]]
    growths: Sequence[float] = field(default_factory=tuple)


def style(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the series at a place of the palette, which repeats."""
    return {"color": COLOURS[place % 7], "marker": MARKERS[place % 7], "linestyle": DASHES[place % 7]}


def new_figure(panels: int, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, in rows of so many if that is given."""
    width, height = PANEL_INCHES
    columns = min(panels, columns or panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes[panels:]:
        axes.set_axis_off()
    return figure, all_axes[:panels]


def finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Words, a grid and, where something has a label, a legend."""
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
    if labels := axes.get_legend_handles_labels()[1]:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2} if len(labels) > MAX_INSIDE else {}
        axes.legend(fontsize="small", framealpha=0.8, **below)


def draw_series(axes: Axes, series: Series, place: int) -> None:
    """Points, line and band; the legend shows the points, if there are any."""
    look = style(place)
    marker = {"color": look["color"], "marker": look["marker"], "linestyle": "none", "markersize": 5}
    line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.5}
    if series.points is not None:
        axes.plot(*series.points, label=series.label, zorder=3, **marker)
    if series.line is not None:
        axes.plot(*series.line, label=None if series.points is not None else series.label, zorder=2, **line)
        if series.band is not None:
            axes.fill_between(series.line[0], *series.band, color=look["color"], alpha=0.18, linewidth=0, zorder=1)


def draw_intervals(axes: Axes, label: str, x: Sequence[float], intervals: Sequence[Interval], place: int) -> None:
    """Values with their intervals, joined by a line."""
    look = style(place)
    axes.plot(x, [each.value for each in intervals], label=label, zorder=3, markersize=5, linewidth=1.5, **look)
    for at, each in zip(x, intervals, strict=True):
        if each.low is not None and each.high is not None:
            axes.plot([at, at], [each.low, each.high], color=look["color"], linewidth=4, alpha=0.35, zorder=2)


def scaling_figure(panels: Sequence[Panel]) -> Figure:
    """Panels of points, fitted lines and their bands, on logarithmic axes."""
    figure, all_axes = new_figure(len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for place, series in enumerate(panel.series):
            if series is not None:
                draw_series(axes, series, place)
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if not panel.decades:
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
            axes.yaxis.set_minor_locator(NullLocator())
        finish(axes, panel.title, panel.x_label, panel.y_label)
    return figure


def mean_and_deviation(runs: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[NDArray, NDArray, NDArray]:
    """x, mean and standard deviation of several curves, at all their x that every curve reaches.

    Between its points a curve is straight. The deviation of a single run is 0.
    """
    curves = [(np.asarray(x, float), np.asarray(y, float)) for x, y in runs]
    places = np.unique(np.concatenate([x for x, _ in curves]))
    first, last = max(x.min() for x, _ in curves), min(x.max() for x, _ in curves)
    places = places[(places >= first) & (places <= last)]
    values = np.stack([np.interp(places, x, y) for x, y in curves])
    return places, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(places)


def learning_figure(curves: Sequence[LearningCurve], *, title: str = "", x_label: str, y_label: str) -> Figure:
    """Means over runs with a band of one standard deviation, and a vertical mark where growth took place."""
    figure, (axes,) = new_figure(1)
    for place, curve in enumerate(curves):
        x, mean, deviation = mean_and_deviation(curve.runs)
        label = f"{curve.label} ({len(curve.runs)} runs)" if len(curve.runs) > 1 else curve.label
        draw_series(axes, Series(label, line=(x, mean), band=(mean - deviation, mean + deviation)), place)
        for growth in curve.growths:
            axes.axvline(growth, color=COLOURS[place % 7], linestyle=":", linewidth=1.0, zorder=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    finish(axes, title, x_label, y_label)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as an image, (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all, without a date or the library's version in it."""

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})

    save_atomically(write, path)
