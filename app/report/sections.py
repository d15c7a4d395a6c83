"""Sections of a report: of a growth study, of a comparison, of the scaling laws of a comparison over sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from matplotlib.figure import Figure

from app.compare.findings import QUALITIES, Row, chosen_runs, comparison_rows
from app.compare.findings import tables as tables_of
from app.compare.report import legends, setting_paragraphs, setting_title
from app.growth_study.findings import recipe_outcomes
from app.growth_study.plan import EXACT, PUBLISHED, SCRATCH, SMALL
from app.growth_study.report import by_corpus, headline, subject, tables
from app.output.figures import LearningCurve, learning_figure
from app.output.numbers import four_digits, short
from app.output.tables import markdown_table
from app.scaling.forecasts import Forecast
from app.scaling.points import collect
from app.scaling.report import draw, survey_markdown
from app.scaling.survey import FIELDS, Survey, bounds, surveys_of, unsure
from app.study.gather import Gathered
from app.study.study import StudiedRun, Study

METRIC = "val/bits_per_char"  # that laws are fitted to
FITS = {"level": 0.9, "resamples": 500, "seed": 1}  # the defaults of `scaling`
DRAWN = (SCRATCH, SMALL, EXACT, "ramped", "restarted", PUBLISHED)  # of a growth study's learning curves
LAWS = (
    "Summary of L(N, D) = E + A N^-alpha + B D^-beta with {level:.0%} intervals. left out: the largest size, predicted "
    'by the others, beside what it was. next: twice the largest size, only predicted. A "?" is not determined by '
    "these points. All laws, L(N) and L(D) too:"
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
    by = sorted({f"{r['device']}, torch {r['versions']['torch']}, {r['precision']}" for r in records})
    hours = sum(record["seconds"] for record in records) / 3600
    return f"{len(records)} of {planned} runs, {hours:.1f} hours of training on {'; '.join(by)}."


# Curves ---------------------------------------------------------------------------------------------------------------


def curve(label: str, runs: Sequence[StudiedRun], x: str, metric: str) -> LearningCurve | None:
    """Validations of runs of one label; None if there are none."""
    histories = [[(p[x], p[metric]) for p in run.record["history"] if p.get(metric) is not None] for run in runs]
    drawn = [tuple(zip(*points, strict=True)) for points in histories if points]
    growths = [event[x] for event in runs[0].record["growth_events"] if x in event] if runs else []
    return LearningCurve(label, drawn, growths) if drawn else None


def figure_of(name: str, curves: Sequence[LearningCurve | None], **words: str) -> dict[str, Figure]:
    """The figure of this name with the curves that there are; none without any."""
    drawn = [curve for curve in curves if curve]
    return {f"{name}.png": learning_figure(drawn, **words)} if drawn else {}


# Growth ---------------------------------------------------------------------------------------------------------------


def growth(name: str, study: Study) -> Iterator[Section]:
    """Recipes of growth against training from scratch."""
    outcomes, figures = recipe_outcomes(study), {}
    for corpus in by_corpus(outcomes):
        curves = [curve(r, study.runs(corpus=corpus, recipe=r, budget=1.0), "flops", METRIC) for r in DRAWN]
        figures |= figure_of(
            f"{name}-{corpus}", curves, title=f"{corpus} (dotted: growth)", x_label="training FLOPs, all stages",
            y_label="bits a character, validation",
        )  # fmt: skip
    title, answer = f"Does growing {subject(study)} pay?", headline(outcomes, subject(study))
    yield Section(title, study.command, about(study), tables(outcomes, "###"), figures, answer)


# Comparison -----------------------------------------------------------------------------------------------------------


def comparison(name: str, study: Study) -> Iterator[Section]:
    """Models on tasks: the laws of a task that has bits per character at several widths, else tables."""
    all_rows = comparison_rows(study)
    for task, group in groupby(all_rows, attrgetter("task")):
        rows = list(group)
        widths = {row.d_model for row in rows if row.model == rows[0].model}
        surveys = surveys_of_task(study, task) if len(widths) > 1 else []
        if surveys:
            figures = {f"{name}-{task}.png": draw(surveys, METRIC)}
            paragraphs = law_paragraphs(surveys, FITS["level"])
            yield Section(f"Scaling: {task}", study.command, about(study, task=task), paragraphs, figures)
        else:
            yield side_by_side(name, study, rows, all_rows[0].model)


def side_by_side(name: str, study: Study, rows: Sequence[Row], baseline: str) -> Section:
    """The tables of one task, and the curves of its validations."""
    task, settings = rows[0].task, tables_of(rows)
    figures: dict[str, Figure] = {}
    paragraphs = []
    for table in settings:
        size = f"-{table[0].d_model}-{short(table[0].budget)}" if len(settings) > 1 else ""
        title = setting_title(table) if size else task
        quality, runs = table[0].quality, study.runs(task=task)
        curves = [
            curve(row.model, [run for run in runs if run.name in row.runs], "tokens", f"val/{quality}") for row in table
        ]
        figures |= figure_of(
            f"{name}-{task}{size}", curves, title=title, x_label="training tokens",
            y_label=f"{QUALITIES.get(quality, quality)}, validation",
        )  # fmt: skip
        paragraphs += [f"### {title}"] if size else []
        paragraphs += setting_paragraphs(study, table, baseline)
    return Section(
        f"Comparison: {task}", study.command, about(study, task=task), [*paragraphs, *legends(rows)], figures
    )


# Scaling --------------------------------------------------------------------------------------------------------------


def surveys_of_task(study: Study, task: str) -> list[Survey]:
    """The laws of each model on a task, at the chosen learning rates; none where nothing is in bits per character."""
    chosen = chosen_runs(study)
    runs = [run for run in study.runs(task=task) if run.name in chosen]
    return surveys_of(collect(Gathered(runs), METRIC).points, **FITS)


def laws(name: str, study: Study) -> Iterator[Section]:
    """The laws that `scaling` fitted, to the same runs in the same way."""
    metric, level = study.options["metric"], study.options["intervals"]
    points = collect(Gathered(study.runs()), metric).points
    surveys = surveys_of(points, level=level, resamples=study.options["resamples"], seed=study.options["seed"])
    figures = {f"{name}.png": draw(surveys, metric)}
    yield Section(f"Scaling of {metric}", study.command, about(study), law_paragraphs(surveys, level), figures)


def law_paragraphs(surveys: Sequence[Survey], level: float) -> list[str]:
    """A summary, and all laws for those who open them."""
    all_laws = ["<details><summary>All laws</summary>", *survey_markdown(surveys, level), "</details>"]
    return [summary(surveys), LAWS.format(level=level), *all_laws]


def summary(surveys: Sequence[Survey]) -> str:
    """A line a model."""
    titles = ["model", "runs", "N", "D", "E", "alpha", "beta", "rms", "left out", "next"]
    return markdown_table(titles, map(summary_row, surveys))


def summary_row(survey: Survey) -> list[str]:
    """L(N, D) of one model."""
    joint = survey.joint
    sizes = [sorted(getattr(point, name) for point in survey.points) for name in FIELDS.values()]
    spans = [f"{short(size[0])} .. {short(size[-1])}" for size in sizes]
    head = [survey.model, str(len(survey.points)), *spans]
    if isinstance(joint.fitted, str):
        return [*head, joint.fitted, *[""] * 5]
    intervals, vague = joint.fitted.intervals(), unsure(joint.fitted)
    values = [
        "?" if name in vague else f"{four_digits(intervals[name].value)} [{bounds(intervals[name], name != 'E')}]"
        for name in ("E", "alpha", "beta")
    ]
    return [*head, *values, f"{joint.fitted.law.rms:.2g}", in_words(joint.left_out), in_words(joint.next_size)]


def in_words(forecast: Forecast | str) -> str:
    """A prediction, and what became of it."""
    if isinstance(forecast, str):
        return "-"
    text = f"{four_digits(forecast.loss.value)} [{bounds(forecast.loss)}]"
    if forecast.observed is None:
        return text
    return f"{text}, was {four_digits(forecast.observed)}: {'inside' if forecast.inside else 'outside'}"
