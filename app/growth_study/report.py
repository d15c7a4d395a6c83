"""How a growth study comes out: a table and an answer for each corpus, and a CSV of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.growth_study.findings import EXACT_JUMP, LOSS, RecipeOutcome, Saved, jumps, loss_of
from app.growth_study.plan import EXACT, PUBLISHED, RECIPES, SCRATCH, SMALL
from app.output.intervals import UNKNOWN, signed, spread
from app.output.numbers import thousands
from app.output.progress import say
from app.output.tables import csv_text, markdown_table
from app.study.study import Study
from callbacks.atomic import write_text

COLUMNS = (
    "recipe", "steps", "parameters", "FLOPs", "seconds", "bits/char", "- scratch, equal FLOPs", "compute saved", "jump",
)  # fmt: skip
CSV_COLUMNS = (
    "corpus", "recipe", "budget", "seed", "status", "steps", "stages", "parameters", "flops", "seconds",
    "test_bits_per_char", "val_bits_per_char", "jumps",
)  # fmt: skip
ROUNDING = 1e-9  # a value this close to an end of the curve from scratch is a bound


def by_corpus(outcomes: Sequence[RecipeOutcome]) -> dict[str, list[RecipeOutcome]]:
    """The rows of each table."""
    return {corpus: list(rows) for corpus, rows in groupby(outcomes, attrgetter("corpus"))}


def percent(value: float, saved: Saved) -> str:
    """A part in percent; where the curve from scratch ends, a bound."""
    sign = "<= " if value <= saved.least + ROUNDING else ">= " if value >= saved.most - ROUNDING else ""
    return f"{sign}{100 * value:+.0f}"


def percentages(saved: Saved) -> str:
    """Compute saved with its interval, in percent."""
    low, high = saved.interval.low, saved.interval.high
    ends = UNKNOWN if low is None or high is None else f"{percent(low, saved)}, {percent(high, saved)}"
    return f"{percent(saved.interval.value, saved)} % [{ends}]"


def row(outcome: RecipeOutcome) -> list[str]:
    """One line of the table."""
    losses = [spread(outcome.losses)] if outcome.losses else []
    diverged = [f"{outcome.diverged} diverged"] if outcome.diverged else []
    return [
        outcome.recipe,
        " + ".join(str(steps) for steps in outcome.stages),
        thousands(outcome.parameters),
        f"{outcome.flops:.3g}",
        f"{outcome.seconds:.0f}",
        ", ".join(losses + diverged),
        signed(outcome.difference) if outcome.difference else "",
        percentages(outcome.saved) if outcome.saved else "",
        f"{outcome.jump:+.4f}" if outcome.jump is not None else "",
    ]


# The answer -----------------------------------------------------------------------------------------------------------


def answer(corpus: str, outcomes: Sequence[RecipeOutcome]) -> str:
    """What the numbers of one corpus say of the question, in words."""
    grown = [outcome for outcome in outcomes if outcome.is_compared]
    if not grown:
        return f"{corpus}: no recipe can be compared with training from scratch yet."
    better, worse, undecided = (
        ", ".join(outcome.recipe for outcome in grown if outcome.verdict == verdict) or "none"
        for verdict in ("better", "worse", "undecided")
    )
    first = next((outcome for outcome in grown if outcome.recipe == EXACT), grown[0])
    at_loss = f", compute saved at equal loss {percentages(first.saved)}" if first.saved else ""
    return (
        f"{corpus}: at equal total FLOPs, growth ends better than training from scratch by {better}; worse by {worse}; "
        f"undecided by {undecided}. {first.recipe}: {difference(first)} bits/char{at_loss}."
    )


def difference(outcome: RecipeOutcome) -> str:
    """From training from scratch, of a recipe that is compared with it."""
    assert outcome.difference is not None
    return signed(outcome.difference)


def subject(study: Study) -> str:
    """What grows, in words."""
    normalization = study.options["scale"]["model"].get("normalization")
    return "TokenFormer" if normalization is None else f"TokenFormer with `--model.normalization {normalization}`"


def headline(outcomes: Sequence[RecipeOutcome], grown: str) -> str:
    """The answer to the question of the study, over all corpora: growth by zero keys, and the best other recipe."""
    compared = [outcome for outcome in outcomes if outcome.is_compared]
    exact = [outcome for outcome in compared if outcome.recipe == EXACT]
    if not exact:
        return "Whether growing pays is not known: no grown run can be compared with training from scratch yet."
    verdicts = [outcome.verdict for outcome in compared]
    better, worse, total = verdicts.count("better"), verdicts.count("worse"), len(verdicts)
    growing = f"growing {grown} step by step"
    if better:
        says = f"G{growing[1:]} can pay"
    elif worse:
        says = f"G{growing[1:]} does not pay here"
    else:
        says = f"Whether {growing} pays is not decided"
    parts = []
    for ours in exact:
        rivals = [outcome for outcome in compared if outcome.corpus == ours.corpus]
        best = min(rivals, key=lambda outcome: outcome.difference.value if outcome.difference else 0)
        shown = [ours] if best is ours else [ours, best]
        parts.append(f"on {ours.corpus} " + ", ".join(against_scratch(outcome, outcome is best) for outcome in shown))
    return (
        f"**{says}: against training from scratch at the same total FLOPs it ends better in {better} of {total} "
        f"comparisons, worse in {worse}.** In bits per character (lower is better), "
        f"{'; '.join(parts)}."
    )


def against_scratch(outcome: RecipeOutcome, is_best: bool) -> str:
    """A recipe's difference from training from scratch, in words."""
    name = f"{outcome.recipe}, the best recipe," if is_best else outcome.recipe
    saved = f" (compute saved at equal loss {percentages(outcome.saved)}, negative is lost)" if outcome.saved else ""
    return f"{name} ends {difference(outcome)} from scratch{saved}"


def jump_lines(outcomes: Sequence[RecipeOutcome]) -> list[str]:
    """Whether exact growth is exact, and how far the published code's is from it."""
    lines = []
    for outcome in outcomes:
        says = f"{outcome.corpus}: growth by {outcome.recipe} changes"
        if outcome.recipe == EXACT and outcome.jump is not None:
            holds = "holds" if abs(outcome.jump) <= EXACT_JUMP else "is MISSED"
            lines.append(f"{says} {outcome.jump:+.1e} bits/char; |change| <= {EXACT_JUMP} {holds}.")
        elif outcome.recipe == PUBLISHED and outcome.jump is not None:
            lines.append(f"{says} {outcome.jump:+.3f} bits/char.")
    return lines


LEGEND = (
    f"bits/char: {LOSS}, mean ± standard deviation over the seeds. "
    "- scratch, equal FLOPs: paired by seed, with Student's 95 % interval. "
    "compute saved: 1 - FLOPs / FLOPs that training from scratch needs for the same loss, interpolated between its "
    "budgets; negative is lost; <= and >= where the budgets end. The interval is the middle 95 % when seeds are drawn "
    "again, which with few seeds is too narrow. "
    "jump: the change of bits/char by growth itself, on the same batches of the validation split, the largest over "
    "growths and seeds. seconds: of training, without validation. "
    "Data do not begin anew at a growth, as the published code's do: each step has its own, restarted or not."
)


def legend() -> list[str]:
    """What the rows are."""
    return [
        f"{SCRATCH} x B: the final size from the start, B times the budget, with a schedule of its own",
        f"{SMALL}: the first size to the end",
        *(f"{name}: {recipe.text}" for name, recipe in RECIPES.items()),
    ]


# Output ---------------------------------------------------------------------------------------------------------------


def tables(outcomes: Sequence[RecipeOutcome], heading: str) -> list[str]:
    """A heading, a table and what it says for each corpus, then the legend: paragraphs of Markdown."""
    parts = []
    for corpus, rows in by_corpus(outcomes).items():
        parts += [
            f"{heading} {corpus}",
            markdown_table(COLUMNS, map(row, rows)),
            answer(corpus, rows),
            *jump_lines(rows),
        ]
    return [*parts, LEGEND, "\n".join(f"- {line}" for line in legend())]


def growth_markdown(study: Study, outcomes: Sequence[RecipeOutcome]) -> str:
    """The whole report."""
    about = ["# Growth study", headline(outcomes, subject(study)), f"`{study.command}`"]
    return "\n\n".join([*about, *tables(outcomes, "##")]) + "\n"


def show(outcomes: Sequence[RecipeOutcome], console: Console) -> None:
    """Print tables and answers."""
    for corpus, rows in by_corpus(outcomes).items():
        table = Table(*COLUMNS, title=f"growth on {corpus}", title_justify="left")
        for outcome in rows:
            table.add_row(*row(outcome))
        console.print(table, highlight=False)
        for line in [answer(corpus, rows), *jump_lines(rows)]:
            say(console, line)


def runs_csv(study: Study) -> str:
    """A line for each run."""
    rows: list[Sequence[Any]] = [CSV_COLUMNS]
    for run in study.runs():
        labels, record = run.labels, run.record
        rows.append([
            labels["corpus"], labels["recipe"], labels["budget"], labels["seed"], record["status"], record["step"],
            " ".join(map(str, labels["stages"])), " ".join(map(str, labels["parameters"])), record["flops"],
            record["seconds"], loss_of(run), record["final"].get("val/bits_per_char"),
            " ".join(f"{jump:.3g}" for jump in jumps(run)),
        ])  # fmt: skip
    return csv_text(rows)


def report_growth(study: Study, outcomes: Sequence[RecipeOutcome], folder: Path, console: Console) -> None:
    """Print the study, and write growth_study.md and growth_study.csv."""
    show(outcomes, console)
    write_text(folder / "growth_study.md", growth_markdown(study, outcomes))
    write_text(folder / "growth_study.csv", runs_csv(study))
