"""Sections of a report: of a growth study, of a comparison, of the scaling laws of a comparison over sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from matplotlib.figure import Figure

from app.compare.findings import Row, chosen_runs, comparison_rows
from app.compare.findings import tables as tables_of
from app.compare.report import learning_figures, legends, setting_paragraphs, setting_title
from app.growth_study.figures import figures as growth_figures
from app.growth_study.findings import table_rows
from app.growth_study.report import headline, paragraphs, subject
from app.output.numbers import four_digits, short
from app.output.tables import markdown_table
from app.scaling.forecasts import Forecast
from app.scaling.origin import rows_of, span, varying
from app.scaling.points import Collected, collect
from app.scaling.report import draw, skipped_markdown, survey_markdown
from app.scaling.survey import FIELDS, LEGEND, Survey, best_optimum, bounds, surveys_of, unsure, value_of
from app.study.gather import Gathered, with_rates
from app.study.study import Record, Study

METRIC = "val/bits_per_char"  # that laws are fitted to
FITS = {"level": 0.9, "resamples": 500, "seed": 1}  # the defaults of `scaling`
LAWS = (
    "Summary of L(N, D) = E + A N^-alpha + B D^-beta with {level:.0%} intervals. left out: the largest size, predicted "
    'by the others, beside what it was. next: twice the largest size, only predicted. A "?" is not determined by '
    "these points. N is the number of all parameters, by: what varies among the models."
)


@dataclass
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        command: What made the study.
        about: How many runs, on what.
        paragraphs: Its text, in Markdown.
        figures: By file name.
        answer: What stands at the very beginning of the report.
    """

    title: str
    command: str
    about: str
    paragraphs: list[str]
    figures: dict[str, Figure] = field(default_factory=dict)
    answer: str = ""


def sections(name: str, study: Study) -> list[Section]:
    """The sections of one study; none where no run is done."""
    kinds = {"growth-study": growth, "compare": comparison, "scaling": laws}
    if study.verb not in kinds:
        raise ValueError(f"{name} is a study by `{study.verb}`, of which there is no report")
    return list(kinds[study.verb](name, study)) if study.records else []


def about(study: Study, **labels: str) -> str:
    """How many runs of these labels there are, by what they were made, and how long they took."""
    records = [run.record for run in study.runs(**labels)]
    planned = sum(all(run.labels[name] == label for name, label in labels.items()) for run in study.plan)
    by = sorted({f"{r['device']}, torch {r['versions']['torch']}, {precision_of(r)}" for r in records})
    hours = sum(record["seconds"] for record in records) / 3600
    return f"{len(records)} of {planned} runs, {hours:.1f} hours of training on {'; '.join(by)}."


def precision_of(record: Record) -> str:
    """Of a run's numbers, and of its products in float32 if these were allowed less than all of it."""
    products = record.get("matmul_precision", "highest")  # older records do not tell
    return str(record["precision"]) + ("" if products == "highest" else f" with products of {products} precision")


# Growth ---------------------------------------------------------------------------------------------------------------


def growth(name: str, study: Study) -> Iterator[Section]:
    """What growing saves against training from scratch."""
    rows = table_rows(study)
    title, answer = f"Does growing {subject(study)} pay?", headline(rows, subject(study))
    figures = growth_figures(name, study, rows)
    yield Section(title, study.command, about(study), paragraphs(study, rows, "###"), figures, answer)


# Comparison -----------------------------------------------------------------------------------------------------------


def comparison(name: str, study: Study) -> Iterator[Section]:
    """Models on tasks: the laws of a task that has bits per character at several widths, else tables."""
    all_rows = comparison_rows(study)
    for task, group in groupby(all_rows, attrgetter("task")):
        rows = list(group)
        widths = {row.d_model for row in rows if row.model == rows[0].model}
        points = points_of_task(study, task) if len(widths) > 1 else Collected([], [], [], [])
        if points.points:
            surveys = surveys_of(points, **FITS)
            figures = {f"{name}-{task}.png": draw(surveys, METRIC)}
            all_runs = all_tables(study, rows, all_rows[0].model)
            paragraphs = [*law_paragraphs(surveys, FITS["level"], points.skipped), *folded("All runs", all_runs)]
            yield Section(f"Scaling: {task}", study.command, about(study, task=task), paragraphs, figures)
        else:
            yield side_by_side(name, study, rows, all_rows[0].model, points.skipped)


def side_by_side(name: str, study: Study, rows: Sequence[Row], baseline: str, skipped: Sequence[str] = ()) -> Section:
    """The tables of one task, and the curves of its validations."""
    task, figures = rows[0].task, learning_figures(name, study, rows)
    paragraphs = [*all_tables(study, rows, baseline), *skipped_markdown(skipped)]
    return Section(f"Comparison: {task}", study.command, about(study, task=task), paragraphs, figures)


def all_tables(study: Study, rows: Sequence[Row], baseline: str) -> list[str]:
    """The tables of one task, one for each size and budget, and how they are read."""
    paragraphs, settings = [], tables_of(rows)
    for table in settings:
        paragraphs += [f"### {setting_title(table)}"] if len(settings) > 1 else []
        paragraphs += setting_paragraphs(study, table, baseline)
    return [*paragraphs, *legends(rows)]


def folded(title: str, paragraphs: Sequence[str]) -> list[str]:
    """Paragraphs for those who open them."""
    return [f"<details><summary>{title}</summary>", *paragraphs, "</details>"]


# Scaling --------------------------------------------------------------------------------------------------------------


def points_of_task(study: Study, task: str) -> Collected:
    """The points of a task, at the chosen learning rates; none where nothing is in bits per character."""
    runs = [run for run in with_rates(study, chosen_runs(study)) if run.labels["task"] == task]
    return collect(Gathered([run for run in runs if METRIC in run.record["final"]]), METRIC)


def laws(name: str, study: Study) -> Iterator[Section]:
    """The laws that `scaling` fitted, to the same runs in the same way."""
    metric, level = study.options["metric"], study.options["intervals"]
    collected = collect(Gathered(study.runs()), metric)
    if not collected.points:
        raise ValueError(f"{name} has no run to fit: {'; '.join(collected.skipped[-1:])}")
    surveys = surveys_of(collected, level=level, resamples=study.options["resamples"], seed=study.options["seed"])
    skipped = list(dict.fromkeys([*study.findings["skipped"], *collected.skipped]))
    figures = {f"{name}.png": draw(surveys, metric)}
    yield Section(f"Scaling of {metric}", study.command, about(study), law_paragraphs(surveys, level, skipped), figures)


def law_paragraphs(surveys: Sequence[Survey], level: float, skipped: Sequence[str]) -> list[str]:
    """A summary, what was skipped, and all laws for those who open them."""
    all_laws = folded("All laws", list(survey_markdown(surveys, level)))
    behind = "\n".join(f"- {survey.model}: {origin_in_words(survey)}" for survey in surveys)
    words = [f"{LAWS.format(level=level)} {LEGEND}", "Behind the points:", behind]
    return [summary(surveys), *words, *skipped_markdown(skipped), *all_laws]


def origin_in_words(survey: Survey) -> str:
    """Which N it is, how well the points were tuned, and what else must be known of them."""
    return ". ".join(" ".join(filter(None, row)) for row in rows_of(survey.points)) + "."


def summary(surveys: Sequence[Survey]) -> str:
    """A line a model."""
    titles = ["model", "runs", "N", "by", "D", "E", "alpha", "beta", "rms", "left out", "next", "N of least loss"]
    return markdown_table(titles, map(summary_row, surveys))


def summary_row(survey: Survey) -> list[str]:
    """L(N, D) of one model."""
    joint = survey.joint
    sizes = [sorted(getattr(point, name) for point in survey.points) for name in FIELDS.values()]
    N, D = (f"{short(size[0])} .. {short(size[-1])}" for size in sizes)
    by = " and apart ".join(span(survey.points, option) for option in varying(survey.points))
    head = [survey.model, str(len(survey.points)), N, by or "-", D]
    if isinstance(joint.fitted, str):
        return [*head, joint.fitted, *[""] * 6]
    intervals, vague = joint.fitted.intervals(), unsure(joint.fitted)
    told = {n: f"{value_of(n, joint.fitted, i.value)} [{bounds(i, n != 'E')}]" for n, i in intervals.items()}
    values = ["?" if name in vague else told[name] for name in ("E", "alpha", "beta")]
    forecasts = [in_words(joint.left_out), in_words(joint.next_size)]
    return [*head, *values, f"{joint.fitted.law.rms:.2g}", *forecasts, best_optimum(survey)]


def in_words(forecast: Forecast | str) -> str:
    """A prediction, and what became of it."""
    if isinstance(forecast, str):
        return "-"
    text = f"{four_digits(forecast.loss.value)} [{bounds(forecast.loss)}]"
    if forecast.observed is None:
        return text
    return f"{text}, was {four_digits(forecast.observed)}: {'inside' if forecast.inside else 'outside'}"
