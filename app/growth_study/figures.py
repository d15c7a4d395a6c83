"""The figures of a growth study: the curve of the answer, and losses against FLOPs with marks at growths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWNBASE, CARETUPBASE
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from app.growth_study.arms import SHARES, SIZES
from app.growth_study.findings import Row, best_size
from app.growth_study.recipes import GROWN
from app.output.figures import COLOURS, Series, draw_intervals, draw_series, finish, mean_and_deviation, new_figure
from app.output.intervals import Interval
from app.study.study import Study

METRIC = "val/bits_per_char"
KINDS = ((False, "parameter tokens"), (True, "layers"))  # whether it is layers that grow, and the words
SHOWN_FROM = 0.04  # of the budget: what comes before would make the rest flat
GREEN = "#009E73"  # of the half in which growing pays
Array = NDArray[np.float64]
Quantity = Callable[[Row], Interval | None]
Curve = list[tuple[Array, Array]]


def figures(name: str, study: Study, rows: Sequence[Row]) -> dict[str, Figure]:
    """All figures of a study by file name; those without a point are left out."""
    found = {f"{name}.png": answer_figure(rows), f"{name}-flops.png": flops_figure(study, rows)}
    return {file: figure for file, figure in found.items() if figure}


# The curve of the answer ----------------------------------------------------------------------------------------------


def saved_percent(row: Row) -> Interval | None:
    """Compute saved, in percent."""
    if row.saved is None:
        return None
    low, high = row.saved.interval.low, row.saved.interval.high
    ends = (None, None) if low is None or high is None else (100 * low, 100 * high)
    return Interval(100 * row.saved.interval.value, *ends)


def by_size(rows: Sequence[Row], deep: bool) -> list[tuple[float, Row]]:
    """Grown rows by their final size, as a multiple of the compute-optimal one."""
    best = best_size(rows, deep)
    grown = [row for row in rows if row.question == SIZES and row.recipe == GROWN and (row.depth > 1) == deep]
    return [] if best is None else [(row.multiple / (best.depth if deep else best.tokens), row) for row in grown]


def by_share(rows: Sequence[Row], deep: bool) -> list[tuple[float, Row]]:
    """Rows of one size by the percentage of their FLOPs that is spent before they have it."""
    sizes = {row.size for row in rows if row.question == SHARES and (row.depth > 1) == deep}
    found = [row for row in rows if row.question in (SIZES, SHARES) and row.recipe == GROWN and row.size in sizes]
    return sorted(((100 * row.share, row) for row in found if len(row.stages) == 2), key=lambda pair: pair[0])


PLACES = (
    (by_size, "by final size", "final size / compute-optimal size"),
    (by_share, "by when it grows", "% of the FLOPs spent before the growth"),
)
QUANTITIES: tuple[tuple[Quantity, str, str, int], ...] = (  # the last: on which side of 0 growing pays
    (saved_percent, "Compute saved at equal loss", "compute saved, %", 1),
    (lambda row: row.difference, "Difference at equal FLOPs", "bits/char, grown - from scratch", -1),
)


def answer_figure(rows: Sequence[Row]) -> Figure | None:
    """Compute saved, and difference of losses, by final size and by the share before the growth."""
    panels = [
        (f"{title} {by}", x_label, y_label, better, lines)
        for points_of, by, x_label in PLACES
        for quantity, title, y_label, better in QUANTITIES
        if any(lines := [points(points_of(rows, deep), quantity) for deep, _ in KINDS])
    ]
    if not panels:
        return None
    figure, all_axes = new_figure(len(panels), columns=2)
    for axes, (title, x_label, y_label, better, lines) in zip(all_axes, panels, strict=True):
        for place, (line, (_, words)) in enumerate(zip(lines, KINDS, strict=True)):
            if line:
                draw_intervals(axes, words, [x for x, _, _ in line], [value for _, value, _ in line], place)
                draw_bounds(axes, line, place)
        shade(axes, better)
        multiples(axes, sorted({x for line in lines for x, _, _ in line}))
        finish(axes, title, x_label, y_label)
    return figure


def points(places: Sequence[tuple[float, Row]], quantity: Quantity) -> list[tuple[float, Interval, str]]:
    """Place, value and, where compute saved is a bound, which one, of the rows that have the quantity."""
    found = [(x, value, row) for x, row in places if (value := quantity(row))]
    return [
        (x, value, row.saved.bound(row.saved.interval.value) if quantity is saved_percent and row.saved else "")
        for x, value, row in found
    ]


def draw_bounds(axes: Axes, line: Sequence[tuple[float, Interval, str]], place: int) -> None:
    """Arrows from values that are bounds to where the true ones are."""
    for x, value, bound in line:
        if bound:
            marker = CARETUPBASE if bound == ">=" else CARETDOWNBASE
            axes.plot([x], [value.value], marker=marker, markersize=11, color=COLOURS[place], zorder=4)


def shade(axes: Axes, better: int) -> None:
    """Shade the side of 0 on which growing pays, and say so."""
    low, high = axes.get_ylim()
    low, high = min(low, -0.1 * high), max(high, -0.1 * low)
    axes.axhspan(
        *((0, high) if better > 0 else (low, 0)), color=GREEN, alpha=0.1, linewidth=0, zorder=0, label="growing pays"
    )
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    axes.set_ylim(low, high)


def multiples(axes: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis with ticks at what there is."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])


# Losses against FLOPs -------------------------------------------------------------------------------------------------


def histories(study: Study, row: Row) -> Curve:
    """Validations of a row's runs, each as (FLOPs, loss)."""
    points = [
        [(point["flops"], point[METRIC]) for point in study.records[name]["history"] if point.get(METRIC) is not None]
        for name in row.runs
    ]
    return [(np.array(x), np.array(y)) for x, y in (zip(*run, strict=True) for run in points if run)]


def least_so_far(curves: Curve) -> Curve:
    """The least loss that each run has had by then."""
    return [(x, np.minimum.accumulate(y)) for x, y in curves]


def draw_row(axes: Axes, study: Study, row: Row, label: str, place: int, *, anytime: bool) -> list[float]:
    """The mean over the seeds with marks at growths; returns losses between which the axes must reach."""
    curves = histories(study, row)
    if not curves:
        return []
    x, mean, deviation = mean_and_deviation(least_so_far(curves) if anytime else curves)
    draw_series(axes, Series(label, line=(x, mean), band=(mean - deviation, mean + deviation)), place)
    growths = [event["flops"] for event in study.records[row.runs[0]]["growth_events"]]
    marks = {"color": COLOURS[place % 7], "marker": "D", "linestyle": "none", "markersize": 6, "zorder": 4}
    axes.plot(growths, np.interp(growths, x, mean), markeredgecolor="white", **marks)
    return [float(np.interp(SHOWN_FROM * x[-1], x, mean)), float(mean.min())]


def flops_figure(study: Study, rows: Sequence[Row]) -> Figure | None:
    """The chain beside training from scratch at each size, at any time; then each size, grown and from scratch."""
    grown = [row for row in rows if row.question == SIZES and row.recipe == GROWN]
    scratch = {row.size: row for row in rows if row.question == SIZES and row.is_scratch}
    panels = [(f"{size_words(row)} (diamonds: growth)", [(row, "grown"), (scratch[row.size], "from scratch")])
              for row in grown if row.size in scratch]  # fmt: skip
    chain = next((row for row in grown if len(row.stages) > 2), None)
    if chain:
        wide = [(row, f"from scratch, {size_words(row)}") for row in scratch.values() if row.depth == 1]
        panels.insert(0, ("At any time (diamonds: growth)", [(chain, "the chain"), *wide]))
    if not panels:
        return None
    figure, all_axes = new_figure(len(panels), columns=3)
    for axes, (title, drawn) in zip(all_axes, panels, strict=True):
        anytime = title.startswith("At any time")
        reached = [
            loss
            for place, (row, label) in enumerate(drawn)
            for loss in draw_row(axes, study, row, label, place, anytime=anytime)
        ]
        if reached:
            low, high = min(reached), max(reached)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        by_decades(axes, max(row.flops for row, _ in drawn))
        finish(axes, title, "training FLOPs, all stages", "least bits/char so far" if anytime else "bits/char")
    return figure


def by_decades(axes: Axes, flops: float) -> None:
    """A logarithmic axis up to so many FLOPs."""
    axes.set_xscale("log")
    axes.set_xlim(SHOWN_FROM * flops, 1.05 * flops)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def size_words(row: Row) -> str:
    """A final size, in words."""
    return f"layers x {row.depth}" if row.depth > 1 else f"tokens x {row.tokens:g}"


def least_by(study: Study, row: Row, flops: Sequence[float]) -> list[float | None]:
    """The least validation loss that a row's runs had by so many FLOPs, on average; None before the first one."""
    curves = least_so_far(histories(study, row))
    return [
        float(np.mean([y[np.searchsorted(x, each * (1 + 1e-6)) - 1] for x, y in curves]))
        if curves and all(x[0] <= each for x, _ in curves)
        else None
        for each in flops
    ]
