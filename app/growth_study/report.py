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
from app.growth_study.plan import RECIPES, SCRATCH, SMALL
from app.output.intervals import UNKNOWN, signed, spread
from app.output.numbers import thousands
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


def percent(value: float, saved: Saved) -> str:
    """A part in percent; where the curve from scratch ends, a bound."""
    sign = "<= " if value <= saved.least + 1e-9 else ">= " if value >= saved.most - 1e-9 else ""
    return f"{sign}{100 * value:+.0f}"


def percentages(saved: Saved) -> str:
    """Compute saved with its interval, in percent."""
    low, high = saved.interval.low, saved.interval.high
    ends = UNKNOWN if low is None or high is None else f"{percent(low, saved)}, {percent(high, saved)}"
    return f"{percent(saved.interval.value, saved)} % [{ends}]"


def loss_text(finding: RecipeOutcome) -> str:
    """Mean and standard deviation over the seeds."""
    diverged = f"{finding.diverged} diverged" if finding.diverged else ""
    if not finding.losses:
        return diverged
    return spread(finding.losses) + (f", {diverged}" if diverged else "")


def row(finding: RecipeOutcome) -> list[str]:
    """One line of the table."""
    return [
        finding.recipe,
        " + ".join(str(steps) for steps in finding.stages),
        thousands(finding.parameters),
        f"{finding.flops:.3g}",
        f"{finding.seconds:.0f}",
        loss_text(finding),
        signed(finding.difference) if finding.difference else "",
        percentages(finding.saved) if finding.saved else "",
        f"{finding.jump:+.4f}" if finding.jump is not None else "",
    ]


# The answer -----------------------------------------------------------------------------------------------------------


def names(found: Sequence[RecipeOutcome]) -> str:
    """Recipes, as a list in words."""
    return ", ".join(f.recipe for f in found) or "none"


def answer(corpus: str, found: Sequence[RecipeOutcome]) -> str:
    """What the numbers of one corpus say of the question, in words."""
    grown = [f for f in found if f.is_grown and f.difference]
    if not grown:
        return f"{corpus}: no recipe can be compared with training from scratch yet."
    kinds = {kind: [f for f in grown if f.verdict == kind] for kind in ("better", "worse", "undecided")}
    first = next((f for f in grown if f.recipe == "exact"), grown[0])
    assert first.difference is not None
    at_loss = f", compute saved at equal loss {percentages(first.saved)}" if first.saved else ""
    return (
        f"{corpus}: at equal total FLOPs, growth ends better than training from scratch by {names(kinds['better'])}; "
        f"worse by {names(kinds['worse'])}; undecided by {names(kinds['undecided'])}. {first.recipe}: "
        f"{signed(first.difference)} bits/char{at_loss}."
    )


def subject(study: Study) -> str:
    """What grows, in words."""
    normalization = study.options["scale"]["model"].get("normalization")
    return "TokenFormer" if normalization is None else f"TokenFormer with `--model.normalization {normalization}`"


def headline(found: Sequence[RecipeOutcome], grown: str) -> str:
    """The answer to the question of the study, over all corpora: growth by zero keys, and the best other recipe."""
    exact = [f for f in found if f.recipe == "exact" and f.difference]
    if not exact:
        return "Whether growing pays is not known: no grown run can be compared with training from scratch yet."
    verdicts = [f.verdict for f in found if f.is_grown and f.difference]
    better, worse, total = verdicts.count("better"), verdicts.count("worse"), len(verdicts)
    growing = f"growing {grown} step by step"
    if better:
        says = f"G{growing[1:]} can pay"
    elif worse:
        says = f"G{growing[1:]} does not pay here"
    else:
        says = f"Whether {growing} pays is not decided"
    parts = []
    for f in exact:
        rivals = [g for g in found if g.corpus == f.corpus and g.is_grown and g.difference]
        best = min(rivals, key=lambda g: g.difference.value if g.difference else 0)
        shown = [f] if best is f else [f, best]
        parts.append(f"on {f.corpus} " + ", ".join(against_scratch(g, g is best) for g in shown))
    return (
        f"**{says}: against training from scratch at the same total FLOPs it ends better in {better} of {total} "
        f"comparisons, worse in {worse}.** In bits per character (lower is better), "
        f"{'; '.join(parts)}."
    )


def against_scratch(found: RecipeOutcome, is_best: bool) -> str:
    """A recipe's difference from training from scratch, in words."""
    assert found.difference is not None
    name = f"{found.recipe}, the best recipe," if is_best else found.recipe
    saved = f" (compute saved at equal loss {percentages(found.saved)}, negative is lost)" if found.saved else ""
    return f"{name} ends {signed(found.difference)} from scratch{saved}"


def jump_lines(found: Sequence[RecipeOutcome]) -> list[str]:
    """Whether exact growth is exact, and how far the published code's is from it."""
    lines = []
    for f in found:
        if f.recipe == "exact" and f.jump is not None:
            holds = "holds" if abs(f.jump) <= EXACT_JUMP else "is MISSED"
            lines.append(
                f"{f.corpus}: growth by exact changes {f.jump:+.1e} bits/char; |change| <= {EXACT_JUMP} {holds}."
            )
        elif f.recipe == "published" and f.jump is not None:
            lines.append(f"{f.corpus}: growth by published changes {f.jump:+.3f} bits/char.")
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


def tables(found: Sequence[RecipeOutcome], heading: str) -> list[str]:
    """A heading, a table and what it says for each corpus, then the legend: paragraphs of Markdown."""
    parts = []
    for corpus, group in groupby(found, attrgetter("corpus")):
        rows = list(group)
        table = markdown_table(COLUMNS, map(row, rows))
        parts += [f"{heading} {corpus}", table, answer(corpus, rows), *jump_lines(rows)]
    return [*parts, LEGEND, "\n".join(f"- {line}" for line in legend())]


def growth_markdown(study: Study, found: Sequence[RecipeOutcome]) -> str:
    """The whole report."""
    return (
        "\n\n".join(["# Growth study", headline(found, subject(study)), f"`{study.command}`", *tables(found, "##")])
        + "\n"
    )


def show(found: Sequence[RecipeOutcome], console: Console) -> None:
    """Print tables and answers."""
    for corpus, group in groupby(found, attrgetter("corpus")):
        rows = list(group)
        table = Table(*COLUMNS, title=f"growth on {corpus}", title_justify="left")
        for f in rows:
            table.add_row(*row(f))
        console.print(table, highlight=False)
        for line in [answer(corpus, rows), *jump_lines(rows)]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


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


def report_growth(study: Study, found: Sequence[RecipeOutcome], folder: Path, console: Console) -> None:
    """Print the study, and write growth_study.md and growth_study.csv."""
    show(found, console)
    write_text(folder / "growth_study.md", growth_markdown(study, found))
    write_text(folder / "growth_study.csv", runs_csv(study))
