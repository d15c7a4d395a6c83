"""The scaling laws of one model's runs: what could be fitted, how well it predicts, and what could not, and why.

L(N) holds for one number of tokens, so it is fitted to the runs at the largest number of tokens at which there are
enough sizes; L(D) in the same way at the largest size with enough numbers of tokens; L(N, D) to all runs. Numbers of
tokens within a tenth count as one, as in tasks whose sequences differ in length they depend on the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.output.intervals import Interval
from app.output.numbers import four_digits, short
from app.scaling.forecasts import Forecast, Frontier, frontier, left_out, next_size
from app.scaling.law import HIGH, LOW, NAMES, UNDETERMINED, Fit, at_edge, check, fit, size_classes
from app.scaling.points import Point

FIELDS = {"N": "parameters", "D": "tokens"}
BEYOND = 10.0  # the frontier is told up to so many times the largest budget


@dataclass(frozen=True)
class Attempt:
    """A law that was fitted, or the reason why not.

    Attributes:
        name: Such as L(N).
        at: Where the other variable stands, in words.
        points: The runs it was, or would have been, fitted to.
        fitted: The fit, or the reason why there is none.
        left_out: How well it predicts its largest size, or the reason why that is not known.
        next_size: The loss of twice the largest size, or the reason why it is not predicted.
    """

    name: str
    at: str
    points: tuple[Point, ...]
    fitted: Fit | str
    left_out: Forecast | str = ""
    next_size: Forecast | str = ""

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON file: parameters that are not determined are null."""
        plain: dict[str, Any] = {"law": self.name, "at": self.at, "points": len(self.points)}
        if isinstance(self.fitted, str):
            return plain | {"reason": self.fitted}
        vague, law = unsure(self.fitted), self.fitted.law
        values = {n: None if n in vague else asdict(i) for n, i in self.fitted.intervals().items()}
        plain |= {"rms": law.rms, "r2": law.r2, "parameters": values, "not_determined": sorted(vague)}
        forecasts = {"left_out": self.left_out, "next_size": self.next_size}
        return plain | {n: {"reason": f} if isinstance(f, str) else f.plain() for n, f in forecasts.items()}


@dataclass(frozen=True)
class Survey:
    """All laws of one model."""

    model: str
    points: tuple[Point, ...]
    attempts: tuple[Attempt, ...]
    frontier: Frontier | str

    @property
    def fitted(self) -> bool:
        """Whether there is any law."""
        return any(isinstance(attempt.fitted, Fit) for attempt in self.attempts)

    def budgets(self) -> np.ndarray:
        """FLOPs at which the frontier is told: those of the cheapest and the dearest run, and beyond."""
        flops = [point.flops for point in self.points]
        return np.array([min(flops), max(flops), BEYOND * max(flops)])

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        found = self.frontier
        edge = {"reason": found} if isinstance(found, str) else found.plain(self.budgets())
        laws = [attempt.plain() for attempt in self.attempts]
        return {"model": self.model, "runs": len(self.points), "laws": laws, "frontier": edge}


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


def attempt(variables: Sequence[str], at: str, points: Sequence[Point], options: dict[str, Any]) -> Attempt:
    """Fit one law, leave its largest size out, look ahead; what cannot be done has its reason in place of a result."""
    name, sizes, losses = f"L({', '.join(variables)})", sizes_of(points, variables), losses_of(points)
    try:
        fitted = fit(sizes, losses, **options)
    except ValueError as error:
        return Attempt(name, at, tuple(points), str(error))
    forecasts: list[Forecast | str] = []
    for forecast in (lambda: left_out(sizes, losses, **options), lambda: next_size(fitted, sizes)):
        try:
            forecasts.append(forecast())
        except ValueError as error:
            forecasts.append(str(error))
    return Attempt(name, at, tuple(points), fitted, *forecasts)


def survey(model: str, points: Sequence[Point], **options: Any) -> Survey:
    """All laws of one model's runs.

    Args:
        model: Its name.
        points: Its runs, one or more.
        options: `level`, `resamples` and `seed` of `fit`.
    """
    single = [attempt(name, *slice_for(points, name), options) for name in FIELDS]
    both = attempt(tuple(FIELDS), "all runs", points, options)
    edge: Frontier | str = "it needs L(N, D)"
    if isinstance(both.fitted, Fit):
        try:
            edge = frontier(both.fitted, *sizes_of(points, "ND").values(), [point.flops for point in points])
        except ValueError as error:
            edge = str(error)
    return Survey(model, tuple(points), (*single, both), edge)


# Words ----------------------------------------------------------------------------------------------------------------


def unsure(fitted: Fit) -> set[str]:
    """Names of the parameters that are no result: an undetermined exponent's, its coefficient's, and E's."""
    vague = {name for pair in NAMES.values() if pair[1] in fitted.undetermined for name in pair}
    return vague | ({"E"} if vague else set())


def bounds(interval: Interval, exponent: bool) -> str:
    """The ends of an interval; an end at the edge of the search says only that it is beyond."""
    low = f"< {LOW:g}" if exponent and at_edge(interval.low) else four_digits(interval.low)
    high = f"> {HIGH:g}" if exponent and at_edge(interval.high) else four_digits(interval.high)
    return f"{low} .. {high}"


Row = tuple[str, str, str]


def forecast_row(what: str, forecast: Forecast | str) -> Row:
    """A forecast: its sizes, its loss with interval, and what became of it."""
    if isinstance(forecast, str):
        return what, "", forecast
    sizes = ", ".join(f"{name} = {short(size)}" for name, size in forecast.sizes.items())
    value, ends = four_digits(forecast.loss.value), bounds(forecast.loss, False)
    if forecast.observed is None:
        return f"{what} {sizes}", value, f"{ends}; only predicted"
    verdict = "inside" if forecast.inside else "outside"
    runs = f" in {forecast.runs} runs" if forecast.runs > 1 else ""
    return (
        f"{what} {sizes}",
        value,
        f"{ends}; was {four_digits(forecast.observed)}{runs}, {forecast.missed_by:+.3f}: {verdict}",
    )


def attempt_rows(found: Attempt) -> list[Row]:
    """A law: what it is, its parameters with intervals, and its forecasts."""
    heading = f"{found.name} at {found.at}" if found.at != "all runs" else f"{found.name} of all runs"
    if isinstance(found.fitted, str):
        return [(heading, "-", found.fitted)]
    law, vague = found.fitted.law, unsure(found.fitted)
    rows = [(heading, f"{law.points} points", f"rms {law.rms:.2g}, R² {law.r2:.4f}")]
    exponents = {exponent for _, exponent in NAMES.values()}
    for name, interval in found.fitted.intervals().items():
        value = (
            ("?", UNDETERMINED) if name in vague else (four_digits(interval.value), bounds(interval, name in exponents))
        )
        rows.append((f"  {name}", *value))
    rows.append(forecast_row("  left out", found.left_out))
    rows.append(forecast_row("  next", found.next_size))
    return rows


def frontier_rows(found: Survey) -> list[Row]:
    """The compute-optimal sizes: exponents, then the sizes at each budget."""
    edge, budgets = found.frontier, found.budgets()
    if isinstance(edge, str):
        return [("frontier", "-", edge)]
    least, greatest = edge.extremes
    rows = [("frontier, C = c N D", f"c = {edge.flops:.3g}", f"{least:.3g} .. {greatest:.3g} in the runs")]
    for name, interval in ((("  a, N ~ C^a"), edge.a), (("  b, D ~ C^b"), edge.b)):
        rows.append((name, four_digits(interval.value), bounds(interval, False)))
    for C, N, D, low, high in zip(budgets, *edge.sizes(budgets), *edge.band(budgets), strict=True):
        ahead = "; only predicted" if max(budgets[:2]) < C else ""
        rows.append((f"  N at {C:.2g} FLOPs", short(N), f"{short(low)} .. {short(high)}; D = {short(D)}{ahead}"))
    return rows


def rows_of(found: Survey) -> list[list[Row]]:
    """All that was found of one model, in sections."""
    return [*(attempt_rows(one) for one in found.attempts), frontier_rows(found)]
