"""The scaling laws of one model's runs: what could be fitted, how well it predicts, and what could not, and why.

L(N) holds for one number of tokens, so it is fitted to the runs at the largest number of tokens at which there are
enough sizes; L(D) in the same way at the largest size with enough numbers of tokens; L(N, D) to all runs. Numbers of
tokens within a tenth count as one, as in tasks whose sequences differ in length they depend on the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from app.output.intervals import Interval
from app.output.numbers import four_digits, short
from app.output.progress import Tell, steps
from app.scaling.forecasts import Forecast, Frontier, frontier, left_out, next_size
from app.scaling.law import HIGH, LOW, NAMES, UNDETERMINED, Fit, at_edge, check, fit, size_classes
from app.scaling.points import Point

FIELDS = {"N": "parameters", "D": "tokens"}
ALL_RUNS = "all runs"
BEYOND = 10.0  # the frontier is told up to so many times the largest budget
Row = tuple[str, str, str]  # of a table: what, its value, its interval or what else is to be said
T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """A law that was fitted, or the reason why not.

    Attributes:
        variables: What the law is of, "N" or "D" or both.
        at: Where the other variable stands, in words; empty for a law of both.
        points: The runs it was, or would have been, fitted to.
        fitted: The fit, or the reason why there is none.
        left_out: How well it predicts its largest size, or the reason why that is not known.
        next_size: The loss of twice the largest size, or the reason why it is not predicted.
    """

    variables: tuple[str, ...]
    at: str
    points: tuple[Point, ...]
    fitted: Fit | str
    left_out: Forecast | str = ""
    next_size: Forecast | str = ""

    @property
    def name(self) -> str:
        """Such as L(N)."""
        return f"L({', '.join(self.variables)})"

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON file: parameters that are not determined are null."""
        plain: dict[str, Any] = {"law": self.name, "at": self.at or ALL_RUNS, "points": len(self.points)}
        if isinstance(self.fitted, str):
            return plain | {"reason": self.fitted}
        vague, law = unsure(self.fitted), self.fitted.law
        values = {n: None if n in vague else asdict(i) for n, i in self.fitted.intervals().items()}
        plain |= {"rms": law.rms, "r2": law.r2, "parameters": values, "not_determined": sorted(vague)}
        forecasts = {"left_out": self.left_out, "next_size": self.next_size}
        return plain | {n: {"reason": f} if isinstance(f, str) else f.plain() for n, f in forecasts.items()}


@dataclass(frozen=True)
class Survey:
    """All laws of one model: of each variable alone, of both jointly, and the frontier or the reason why there is none.

    Attributes:
        model: Its name.
        points: Its runs.
        alone: L(N) and L(D), by the variable.
        joint: L(N, D).
        frontier: The compute-optimal sizes.
    """

    model: str
    points: tuple[Point, ...]
    alone: dict[str, Attempt]
    joint: Attempt
    frontier: Frontier | str

    @property
    def attempts(self) -> list[Attempt]:
        """All laws."""
        return [*self.alone.values(), self.joint]

    def budgets(self) -> np.ndarray:
        """FLOPs at which the frontier is told: those of the cheapest and the dearest run, and beyond."""
        flops = [point.flops for point in self.points]
        return np.array([min(flops), max(flops), BEYOND * max(flops)])

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        edge = self.frontier
        frontier = {"reason": edge} if isinstance(edge, str) else edge.plain(self.budgets())
        laws = [attempt.plain() for attempt in self.attempts]
        return {"model": self.model, "runs": len(self.points), "laws": laws, "frontier": frontier}


# Fitting --------------------------------------------------------------------------------------------------------------


def sizes_of(points: Sequence[Point], variables: Sequence[str]) -> dict[str, np.ndarray]:
    """The points' sizes by variable, as `fit` takes them."""
    return {name: np.array([getattr(point, FIELDS[name]) for point in points], float) for name in variables}


def losses_of(points: Sequence[Point]) -> np.ndarray:
    """The points' losses."""
    return np.array([point.loss for point in points])


def slice_for(points: Sequence[Point], variable: str) -> tuple[str, list[Point]]:
    """The points at the largest other size that suffice for a law of one variable, and that size in words.

    If none do, those with the most different sizes.
    """
    (other,) = set(FIELDS) - {variable}
    place = size_classes(sizes_of(points, other)[other])
    best: list[Point] = []
    for group in range(place.max(), -1, -1):
        some = [point for point, own in zip(points, place, strict=True) if own == group]
        sizes = sizes_of(some, variable)
        try:
            check(sizes, losses_of(some))
        except ValueError:
            if len(set(size_classes(sizes[variable]))) > len(set(size_classes(sizes_of(best, variable)[variable]))):
                best = some
            continue
        best = some
        break
    return f"{other} = {short(float(np.mean(sizes_of(best, other)[other])))}", best


def or_reason(function: Callable[..., T], *args: Any, **options: Any) -> T | str:
    """What a function returns, or the reason why it cannot."""
    try:
        return function(*args, **options)
    except ValueError as error:
        return str(error)


def attempt(variables: Sequence[str], at: str, points: Sequence[Point], options: dict[str, Any]) -> Attempt:
    """Fit one law, leave its largest size out, look ahead."""
    sizes, losses = sizes_of(points, variables), losses_of(points)
    fitted = or_reason(fit, sizes, losses, **options)
    known: tuple[Any, ...] = (tuple(variables), at, tuple(points), fitted)
    if isinstance(fitted, str):
        return Attempt(*known)
    return Attempt(*known, or_reason(left_out, sizes, losses, **options), or_reason(next_size, fitted, sizes))


def survey(model: str, points: Sequence[Point], tell: Tell, **options: Any) -> Survey:
    """All laws of one model's runs.

    Args:
        model: Its name.
        points: Its runs, one or more.
        tell: Is called with a line about each law that was tried.
        options: `level`, `resamples` and `seed` of `fit`.
    """

    def tried(variables: Sequence[str], at: str, points: Sequence[Point]) -> Attempt:
        law = attempt(variables, at, points, options)
        tell(f"{model}, {law.name}")
        return law

    alone = {variable: tried(variable, *slice_for(points, variable)) for variable in FIELDS}
    joint = tried(tuple(FIELDS), "", points)
    edge: Frontier | str = "it needs L(N, D)"
    if isinstance(joint.fitted, Fit):
        sizes, flops = sizes_of(points, tuple(FIELDS)), [point.flops for point in points]
        edge = or_reason(frontier, joint.fitted, sizes["N"], sizes["D"], flops)
    return Survey(model, tuple(points), alone, joint, edge)


def surveys_of(points: Sequence[Point], console: Console | None = None, **options: Any) -> list[Survey]:
    """The laws of each model, in the order of the models' names; the console, if there is one, hears of each."""
    models = sorted({point.model for point in points})
    with steps((len(FIELDS) + 1) * len(models), console or Console(quiet=True)) as tell:
        return [survey(model, [point for point in points if point.model == model], tell, **options) for model in models]


# Words ----------------------------------------------------------------------------------------------------------------


def unsure(fitted: Fit) -> set[str]:
    """Names of the parameters that are no result: an undetermined exponent's, its coefficient's, and E's."""
    vague = {name for pair in NAMES.values() if pair[1] in fitted.undetermined for name in pair}
    return vague | ({"E"} if vague else set())


def bounds(interval: Interval, exponent: bool = False) -> str:
    """The ends of an interval; an end at the edge of the search says only that it is beyond."""
    low = f"< {LOW:g}" if exponent and at_edge(interval.low) else four_digits(interval.low)
    high = f"> {HIGH:g}" if exponent and at_edge(interval.high) else four_digits(interval.high)
    return f"{low} .. {high}"


def forecast_row(what: str, forecast: Forecast | str) -> Row:
    """A forecast: its sizes, its loss with interval, and what became of it."""
    if isinstance(forecast, str):
        return what, "", forecast
    sizes = ", ".join(f"{name} = {short(size)}" for name, size in forecast.sizes.items())
    value, ends = four_digits(forecast.loss.value), bounds(forecast.loss)
    if forecast.observed is None:
        return f"{what} {sizes}", value, f"{ends}; only predicted"
    verdict = "inside" if forecast.inside else "outside"
    runs = f" in {forecast.runs} runs" if forecast.runs > 1 else ""
    return (
        f"{what} {sizes}",
        value,
        f"{ends}; was {four_digits(forecast.observed)}{runs}, {forecast.missed_by:+.3f}: {verdict}",
    )


def attempt_rows(attempt: Attempt) -> list[Row]:
    """A law: what it is, its parameters with intervals, and its forecasts."""
    heading = f"{attempt.name} at {attempt.at}" if attempt.at else f"{attempt.name} of {ALL_RUNS}"
    if isinstance(attempt.fitted, str):
        return [(heading, "-", attempt.fitted)]
    law, vague = attempt.fitted.law, unsure(attempt.fitted)
    rows = [(heading, f"{law.points} points", f"rms {law.rms:.2g}, R² {law.r2:.4f}")]
    exponents = {exponent for _, exponent in NAMES.values()}
    for name, interval in attempt.fitted.intervals().items():
        ends = bounds(interval, exponent=name in exponents)
        rows.append((f"  {name}", *(("?", UNDETERMINED) if name in vague else (four_digits(interval.value), ends))))
    forecasts = {"  left out": attempt.left_out, "  next": attempt.next_size}
    return [*rows, *(forecast_row(what, forecast) for what, forecast in forecasts.items())]


def frontier_rows(survey: Survey) -> list[Row]:
    """The compute-optimal sizes: exponents, then the sizes at each budget."""
    edge, budgets = survey.frontier, survey.budgets()
    if isinstance(edge, str):
        return [("frontier", "-", edge)]
    least, greatest = edge.extremes
    rows = [("frontier, C = c N D", f"c = {edge.flops:.3g}", f"{least:.3g} .. {greatest:.3g} in the runs")]
    for name, interval in (("  a, N ~ C^a", edge.a), ("  b, D ~ C^b", edge.b)):
        rows.append((name, four_digits(interval.value), bounds(interval)))
    dearest = max(point.flops for point in survey.points)
    for C, N, D, low, high in zip(budgets, *edge.sizes(budgets), *edge.band(budgets), strict=True):
        ahead = "; only predicted" if dearest < C else ""
        rows.append((f"  N at {C:.2g} FLOPs", short(N), f"{short(low)} .. {short(high)}; D = {short(D)}{ahead}"))
    return rows


def sections_of(survey: Survey) -> list[list[Row]]:
    """All that was found of one model, a section for each law and one for the frontier."""
    return [*map(attempt_rows, survey.attempts), frontier_rows(survey)]
