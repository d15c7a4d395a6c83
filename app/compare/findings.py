"""What a comparison shows: for each model, task, size and budget the quality with what was chosen for it.

Models are compared with the first one by Welch's interval, as different models share no noise worth pairing, and the p
values of a table are corrected together by Holm's method. A model at chance is untrained: it has no difference, and
neither wins nor loses. The test is only ever reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.compare.outcomes import has_learned
from app.output.intervals import LEVEL, Difference, holm, welch_difference
from app.study.rates import RUNG, SEARCH, at_chosen_rate, validation_loss
from app.study.study import Record, StudiedRun, Study

LABELS = ("task", "model", "d_model", "num_layers", "budget")  # of a group of runs, over which trials and seeds vary
QUALITIES = {"bits_per_char": "bits/char", "accuracy": "accuracy"}  # the first that a test has is what counts
SMALLER_IS_BETTER = ("bits_per_char", "loss")


@dataclass(frozen=True)
class Row:
    """A model on a task, at one size and budget.

    Attributes:
        task, model, d_model, num_layers, budget: What it is; None stands for the layers of its file.
        unit: Unit of the budget.
        factor: The learning rate that was chosen, as a multiple of the recipe's; None if all diverged.
        at_edge: Whether it is at an end of the range, so that a better one may lie beyond.
        configuration: What else was chosen, over the experiment file.
        search: How: number of trials, whether one learned, widenings, the range; or that the first seed chose, as it
            did in older studies.
        runs: Names of the runs that were measured.
        seeds: Their seeds.
        learned: How many of them ended above chance; None where chance is not known.
        diverged: Runs that diverged, which count in nothing else.
        parameters, tokens, flops, seconds: Means over the seeds; seconds of training.
        quality: Name of what is measured.
        values: By slice, of each seed; the first slice is the whole test.
        difference: Difference of the whole test from the first model's.
        p: Its p value, corrected for all differences of the setting.
    """

    task: str
    model: str
    d_model: int
    num_layers: int | None
    budget: float
    unit: str
    factor: float | None
    at_edge: bool
    configuration: dict[str, Any]
    search: dict[str, Any]
    runs: list[str]
    seeds: list[int]
    learned: int | None
    diverged: int
    parameters: int
    tokens: float
    flops: float
    seconds: float
    quality: str
    values: dict[str, list[float]]
    difference: Difference | None = None
    p: float | None = None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What models are compared at."""
        return self.task, self.d_model, self.num_layers, self.budget

    @property
    def untrained(self) -> bool:
        """Whether no seed learned anything."""
        return self.learned == 0

    @property
    def verdict(self) -> str:
        """In a word: untrained; learned, where it cannot be compared; else better, worse or undecided."""
        if self.untrained:
            return "untrained"
        if self.difference is None or self.p is None:
            return "" if self.learned is None else "learned"
        if self.p >= 1 - LEVEL:
            return "undecided"
        return "better" if (self.difference.value < 0) == (self.quality in SMALLER_IS_BETTER) else "worse"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"verdict": self.verdict}


# Which runs count -----------------------------------------------------------------------------------------------------


def groups(study: Study) -> list[list[StudiedRun]]:
    """The finished runs that count of each model, task, size and budget, in the order of the plan; at least one."""
    labels = list(dict.fromkeys(tuple(run.labels.get(name) for name in LABELS) for run in study.plan))
    runs = (study.runs(**dict(zip(LABELS, group, strict=True))) for group in labels)
    counting = ([run for run in at_chosen_rate(group) if RUNG not in run.labels] for group in runs if group)
    return [group for group in counting if group]


def chosen_runs(study: Study) -> list[str]:
    """Names of the runs that count and did not diverge."""
    return [run.name for group in groups(study) for run in group if validation_loss(run.record) is not None]


# Rows -----------------------------------------------------------------------------------------------------------------


def slices(record: Record, quality: str) -> dict[str, float]:
    """The whole test, under the empty name, and its slices."""
    whole = f"test/{quality}"
    measured = {key: value for key, value in record["test"].items() if value is not None}
    return {key[len(whole) + 1 :]: float(measured[key]) for key in measured if f"{key}/".startswith(f"{whole}/")}


def num_learned(runs: Iterable[StudiedRun]) -> int | None:
    """How many runs learned anything; None where that is not known of one."""
    known = [has_learned(run.record) for run in runs]
    return None if None in known or not known else sum(map(bool, known))


def row(group: Sequence[StudiedRun]) -> Row:
    """What the runs of a group show."""
    ended = [run for run in group if run.record.get("test")]
    quality = next((name for name in QUALITIES if ended and f"test/{name}" in ended[0].record["test"]), "loss")
    measured = [slices(run.record, quality) for run in ended]
    shared = [name for name in (measured[0] if measured else {}) if all(name in values for values in measured)]
    shown = [run.record for run in ended or group]
    means = {key: statistics.fmean(record[key] for record in shown) for key in ("tokens", "flops", "seconds")}
    labels = group[0].labels
    search = labels.get(SEARCH, {})
    return Row(
        **{name: labels.get(name) for name in (*LABELS, "unit")},
        factor=labels["factor"],
        at_edge=bool(search.get("edge")),
        configuration=labels.get("configuration", {}),
        search=search,
        runs=[run.name for run in ended],
        seeds=[run.labels["seed"] for run in ended],
        learned=num_learned(ended),
        diverged=len(group) - len(ended),
        parameters=shown[0]["parameters"],
        **means,
        quality=quality,
        values={name: [values[name] for values in measured] for name in shared},
    )


def comparison_rows(study: Study) -> list[Row]:
    """All rows, in the order of the plan, each with its difference from the first model's."""
    rows = [row(group) for group in groups(study)]
    baselines = {other.setting: other for other in rows if other.model == rows[0].model}
    rows = [replace(ours, difference=difference(ours, baselines.get(ours.setting))) for ours in rows]
    p_values = {(ours.setting, ours.model): p for table in tables(rows) for ours, p in corrected(table)}
    return [replace(ours, p=p_values.get((ours.setting, ours.model))) for ours in rows]


def tables(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each setting, which are compared with each other."""
    settings = list(dict.fromkeys(ours.setting for ours in rows))
    return [[ours for ours in rows if ours.setting == setting] for setting in settings]


def corrected(table: Sequence[Row]) -> list[tuple[Row, float]]:
    """The rows of a setting that are compared, each with its corrected p value."""
    tested = [(ours, ours.difference.p) for ours in table if ours.difference and ours.difference.p is not None]
    return list(zip([ours for ours, _ in tested], holm([p for _, p in tested]), strict=True))


def difference(ours: Row, theirs: Row | None) -> Difference | None:
    """The difference of the whole test; None where there is nothing to compare, or one of the two learned nothing."""
    if theirs is None or theirs is ours or ours.quality != theirs.quality or ours.untrained or theirs.untrained:
        return None
    samples = ours.values.get(""), theirs.values.get("")
    return welch_difference(*samples) if all(samples) else None
