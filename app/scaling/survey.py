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
from app.scaling import origin
from app.scaling.checks import Check, checks_of, proposal
from app.scaling.forecasts import Forecast, Frontier, Optimum, frontier, left_out, next_size, without_smallest
from app.scaling.law import HIGH, LOW, NAMES, UNDETERMINED, Fit, at_edge, check, fit, size_classes
from app.scaling.points import Collected, Point

FIELDS = {"N": "parameters", "D": "tokens"}
STEPS = (*FIELDS, "both", "optimal sizes")  # of what is fitted again and again, for each model
ALL_RUNS = "all runs"
BUDGETS = 3  # at which optima are told, between those of the cheapest and the dearest run
NOT_DETERMINED = "not determined"
SIGN = "†"  # of an E at its bound
LEGEND = (
    f"{SIGN}: E is at its bound, 0 or the lowest loss, and the other parameters are what the bound makes of them. "
    "An optimum is told only inside the measured N and D and up to four epochs of the data; its interval covers the "
    "optimum without the runs of the smallest D."
)
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
        plain |= {"E_at_bound": law.at_bound}
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
        checks: What L(N, D) predicts of runs that it was not fitted to, beside their losses, or why it does not.
    """

    model: str
    points: tuple[Point, ...]
    alone: dict[str, Attempt]
    joint: Attempt
    frontier: Frontier | str
    checks: tuple[Check, ...] | str = ()

    @property
    def attempts(self) -> list[Attempt]:
        """All laws."""
        return [*self.alone.values(), self.joint]

    def budgets(self) -> np.ndarray:
        """FLOPs at which optima are told: between those of the runs, and in the middle of the determined ones."""
        flops = [point.flops for point in self.points]
        between = np.geomspace(min(flops), max(flops), BUDGETS + 2)[1:-1]
        middle = None if isinstance(self.frontier, str) else self.frontier.middle
        return between if middle is None else np.sort([*between, middle])

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        edge = self.frontier
        frontier = {"reason": edge} if isinstance(edge, str) else edge.plain(self.budgets())
        laws = [attempt.plain() for attempt in self.attempts]
        told = {"model": self.model, "runs": len(self.points), "N": origin.kind_of_size(self.points), "laws": laws}
        checks = self.checks if isinstance(self.checks, str) else [check.plain() for check in self.checks]
        return told | {"frontier": frontier, "run_at_optimum": proposal(self.points, edge), "checks": checks}


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


def survey(model: str, points: Sequence[Point], runs: Sequence[Point], tell: Tell, **options: Any) -> Survey:
    """All laws of one model's runs.

    Args:
        model: Its name.
        points: Its runs, one or more.
        runs: Others, which are not fitted but predicted.
        tell: Is called with a line about each of `STEPS`: a law that was tried, and the optimal sizes.
        options: `level`, `resamples` and `seed` of `fit`.
    """

    def tried(variables: Sequence[str], at: str, points: Sequence[Point]) -> Attempt:
        law = attempt(variables, at, points, options)
        tell(f"{model}, {law.name}")
        return law

    alone = {variable: tried(variable, *slice_for(points, variable)) for variable in FIELDS}
    joint = tried(tuple(FIELDS), "", points)
    edge: Frontier | str = "it needs L(N, D)"
    checks: tuple[Check, ...] | str = "L(N, D) is not known" if runs else ()
    if isinstance(joint.fitted, Fit):
        sizes, flops = sizes_of(points, tuple(FIELDS)), [point.flops for point in points]
        again = or_reason(without_smallest, sizes, losses_of(points), **options)
        edge = or_reason(frontier, joint.fitted, again, sizes["N"], sizes["D"], flops, points[0].epoch)
        checks = tuple(checks_of(points, runs, joint.fitted, edge))
    tell(f"{model}, compute-optimal sizes")
    return Survey(model, tuple(points), alone, joint, edge, checks)


def surveys_of(collected: Collected, console: Console | None = None, **options: Any) -> list[Survey]:
    """The laws of each model, in the order of the models' names; the console, if there is one, hears of each."""
    models = sorted({point.model for point in collected.points})
    with steps(len(STEPS) * len(models), console or Console(quiet=True)) as tell:
        return [
            survey(model, *([p for p in some if p.model == model] for some in collected[:2]), tell, **options)
            for model in models
        ]


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


def value_of(name: str, fitted: Fit, value: float) -> str:
    """A parameter of a law, with a sign if it is an E at its bound."""
    return four_digits(value) + (SIGN if name == "E" and fitted.law.at_bound else "")


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
        value = value_of(name, attempt.fitted, interval.value)
        rows.append((f"  {name}", *(("?", UNDETERMINED) if name in vague else (value, ends))))
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
    span = f"{edge.determined[0]:.2g} .. {edge.determined[1]:.2g} FLOPs" if edge.determined else "nowhere"
    rows.append(("  determined", span, "inside the measured N and D, up to four epochs"))
    rows += [(f"  N at {C:.2g} FLOPs", *optimum_cells(edge.optimum(C), edge)) for C in budgets]
    command = proposal(survey.points, edge)
    return [*rows, *([("  to train there", f"{edge.middle:.2g} FLOPs", command)] if command else [])]


def best_optimum(survey: Survey) -> str:
    """The optimum in the middle of the determined budgets, in words."""
    edge = survey.frontier
    if isinstance(edge, str) or edge.middle is None:
        return NOT_DETERMINED
    value, said = optimum_cells(edge.optimum(edge.middle), edge)
    return f"{value} at {edge.middle:.2g} FLOPs, {said}"


def optimum_cells(optimum: Optimum, edge: Frontier) -> tuple[str, str]:
    """An optimum and what is to be said of it: its number only where it is determined."""
    measured, moved = edge.measured, optimum.without_smallest
    if moved is None:
        how = f"without the smallest D not known: {edge.refitted}"
    else:
        reason = f" ({moved.beyond})" if moved.beyond != optimum.beyond else ", either"
        value = f"{NOT_DETERMINED}{reason}" if moved.beyond else short(moved.parameters.value)
        how = f"without the smallest D {value}"
    if optimum.beyond:
        return NOT_DETERMINED, f"{optimum.beyond}; {how}"
    ends = optimum.parameters
    low = f"< {short(measured.smallest)}" if ends.low < measured.smallest else short(ends.low)
    high = f"> {short(measured.largest)}" if ends.high > measured.largest else short(ends.high)
    return short(ends.value), f"{low} .. {high}; D = {short(optimum.tokens)}; {how}"


def check_rows(survey: Survey) -> list[Row]:
    """What L(N, D) predicted of runs that it was not fitted to, and what they were."""
    if isinstance(survey.checks, str):
        return [("check", "-", survey.checks)]
    rows = [(forecast_row("check", check.forecast), check.remark) for check in survey.checks]
    return [(what, value, f"{said}; {remark}" if remark else said) for (what, value, said), remark in rows]


def sections_of(survey: Survey) -> list[list[Row]]:
    """All that was found of one model: where its points come from, each law, the frontier, and checks, if any."""
    sections = [origin.rows_of(survey.points), *map(attempt_rows, survey.attempts), frontier_rows(survey)]
    return [*sections, check_rows(survey)] if survey.checks else sections
