"""How a growth study comes out: the answer, four ways to account for it, a table each, figures, and all runs as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from app.growth_study.arms import FAMILY, OF_RECIPES, SHARES, SIZES
from app.growth_study.curves import Saved
from app.growth_study.figures import KINDS, figures, least_by, size_words
from app.growth_study.findings import LOSS, Family, Row, best_size, family_of, jumps, ladder, loss_of, mean_loss
from app.growth_study.recipes import BRANCH, GROWN, RECIPES, SCRATCH
from app.output.events import write_summary
from app.output.figures import save
from app.output.intervals import UNKNOWN, signed, spread
from app.output.numbers import thousands
from app.output.progress import say
from app.output.tables import csv_text, markdown_table, new_table
from app.study.study import Study
from callbacks.atomic import write_text

COLUMNS = (
    "size", "trained", "steps", "parameters", "lr x", "FLOPs", "seconds", "bits/char", "- scratch", "p", "verdict",
    "saved, %", "saved, base sunk, %", "jump",
)  # fmt: skip
RIVAL = (f"- {GROWN}", f"p of - {GROWN}")
FAMILY_COLUMNS = (
    "size", "FLOPs up to it", "beyond the chain", "bits/char, chain", "bits/char, scratch", "- scratch", "p", "verdict",
    "FLOPs at equal loss",
)  # fmt: skip
HIDDEN = ("steps", "parameters", "FLOPs", "p", "saved, base sunk, %", "jump", RIVAL[1])  # where there is little room
LABELS = ("arm", "question", "recipe", "tokens", "depth", "budget", "share", "factor", "seed")
CSV_COLUMNS = (
    "run", *LABELS, "tries", "status", "steps", "stages", "parameters", "training_tokens", "flops", "seconds",
    "test_bits_per_char", "val_bits_per_char", "jumps",
)  # fmt: skip
MOMENTS = (0.25, 0.5, 0.75, 1.0)  # of the budget, at which the least loss so far is told


# Cells ----------------------------------------------------------------------------------------------------------------


def percent(value: float, saved: Saved) -> str:
    """A part in percent; where the curve from scratch ends, a bound."""
    return f"{saved.bound(value)} {100 * value:+.0f}".strip()


def percentages(saved: Saved | None) -> str:
    """Compute saved with its interval, in percent; empty where it is not known."""
    if saved is None:
        return ""
    value = percent(saved.interval.value, saved)
    if saved.interval.low is None or saved.interval.high is None:
        return f"{value} [{UNKNOWN}]"
    low, high = percent(saved.interval.low, saved), percent(saved.interval.high, saved)
    return value if low == value == high and saved.bound(saved.interval.value) else f"{value} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """A corrected p value."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def trained(row: Row) -> str:
    """How, and when it was grown."""
    part = 100 * row.share
    return f"{row.recipe}, at {part:.0f} %" if not row.is_scratch and row.recipe != BRANCH else row.recipe


def rate(row: Row) -> str:
    """The learning rate, and whether a better one may lie beyond those tried."""
    return f"{row.factor:g}{'*' if row.search['edge'] else ''}"


def cells(row: Row) -> list[str]:
    """One line of a table."""
    losses = [spread(row.losses)] if row.losses else []
    diverged = [f"{row.diverged} diverged"] if row.diverged else []
    return [
        size_words(row), trained(row), " + ".join(map(str, row.stages)), thousands(row.parameters), rate(row),
        f"{row.flops:.3g}", f"{row.seconds:.0f}", ", ".join(losses + diverged),
        signed(row.difference) if row.difference else "", p_value(row.p), row.verdict, percentages(row.saved),
        percentages(row.sunk), "" if row.jump is None else f"{row.jump:+.4f}",
    ]  # fmt: skip


def rival_cells(row: Row) -> list[str]:
    """The difference from the main recipe."""
    return [signed(row.rival) if row.rival else "", p_value(row.rival_p)]


# Tables ---------------------------------------------------------------------------------------------------------------


def tests_below(rows: Sequence[Row]) -> str:
    """How many differences were tested, and corrected for."""
    return f"Differences from scratch tested in this table: {sum(row.p is not None for row in rows)}."


def size_table(rows: Sequence[Row]) -> list[list[str]]:
    """Each final size, from scratch and grown."""
    order = sorted(rows_of(rows, SIZES), key=lambda row: (row.depth, row.tokens, not row.is_scratch))
    return [cells(row) for row in order]


def least_words(rows: Sequence[Row]) -> str:
    """Which size ends best of all from scratch, and which grown."""
    ended = [row for row in rows_of(rows, SIZES) if row.losses]
    parts = []
    for words, kind in (("from scratch", True), ("grown", False)):
        best = min((row for row in ended if row.is_scratch == kind), key=mean_loss, default=None)
        parts += [f"{words} {spread(best.losses)} ({size_words(best)})"] if best else []
    return f"The least bits/char of all sizes: {', '.join(parts)}." if parts else ""


def rows_of(rows: Sequence[Row], question: str) -> list[Row]:
    """The rows that answer a question."""
    return [row for row in rows if row.question == question]


def share_table(rows: Sequence[Row]) -> list[list[str]]:
    """One size by the share before the growth, that of the main recipe among them where it grows once."""
    sizes = {row.size for row in rows_of(rows, SHARES)}
    main = [row for row in rows_of(rows, SIZES) if row.size in sizes and row.recipe == GROWN and len(row.stages) == 2]
    order = sorted([*rows_of(rows, SHARES), *main], key=lambda row: (row.depth, row.tokens, row.share))
    return [cells(row) for row in order]


def recipe_table(rows: Sequence[Row]) -> list[list[str]]:
    """Other recipes, beside training from scratch and the main one."""
    return [[*cells(row), *rival_cells(row)] for row in rows_of(rows, OF_RECIPES)]


def family_table(family: Family) -> list[list[str]]:
    """What the chain gives at each size, and what it costs beyond the chain."""
    lines = []
    for row, partner in zip(family.members, family.partners, strict=True):
        beyond = f"{row.flops - row.shared:.3g}" if row.recipe == BRANCH else "the chain"
        theirs = "" if partner is row else spread(partner.losses)  # the first member is from scratch itself
        lines.append([
            size_words(row), f"{row.flops:.3g}", beyond, spread(row.losses), theirs,
            signed(row.difference) if row.difference else "", p_value(row.p), row.verdict,
            at_loss(row.flops, row.saved),
        ])  # fmt: skip
    return lines


def at_loss(flops: float, saved: Saved | None) -> str:
    """FLOPs from scratch for the loss of a run of so many; empty where that is not known."""
    if saved is None:
        return ""
    return f"{saved.bound(saved.interval.value)} {flops / (1 - saved.interval.value):.3g}".strip()


def family_words(family: Family) -> str:
    """What all sizes of the chain cost, and what they cost from scratch."""
    parts = [
        f"The chain gives {len(family.members)} sizes for {family.chain:.3g} FLOPs; from scratch, each with as many as "
        f"its path here took, they cost {family.scratch:.3g}: {family.scratch / family.chain:.2g} times as much."
    ]
    if family.at_loss:
        ends = "" if family.at_loss.low is None else f" [{family.at_loss.low:.3g}, {family.at_loss.high:.3g}]"
        times = f"{family.at_loss.value / family.chain:.2g} times as much"
        bounded = any(row.saved and row.saved.bound(row.saved.interval.value) for row in family.members)
        bound = "; what is a bound at a size is one in the sum, too" if bounded else ""
        parts.append(f"For equal losses they cost {family.at_loss.value:.3g}{ends} from scratch, {times}{bound}.")
    return " ".join(parts)


def moment_table(study: Study, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The least validation loss by parts of the budget, of the chain, or the largest grown size, and from scratch."""
    grown = [row for row in rows_of(rows, SIZES) if row.recipe == GROWN and row.depth == 1 and row.losses]
    if not grown:
        return [], []
    last = max(grown, key=lambda row: (len(row.stages), row.tokens))
    moments = [part * last.flops for part in MOMENTS]
    lines = [
        [f"{size_words(row)}, {row.recipe}", *("-" if v is None else f"{v:.3f}" for v in least_by(study, row, moments))]
        for row in [last, *ladder(rows, deep=False)]
    ]
    return ["least bits/char by", *(f"{moment:.3g}" for moment in moments)], lines


# The answer -----------------------------------------------------------------------------------------------------------


def subject(study: Study) -> str:
    """What grows, in words."""
    normalization = study.options["setting"]["model"].get("normalization")
    return "TokenFormer" if normalization is None else f"TokenFormer with `--model.normalization {normalization}`"


def judged(rows: Sequence[Row], words: str) -> str:
    """At which sizes growing ends better, worse or undecided, in words."""
    said = {word: [row for row in rows if row.verdict == word] for word in ("better", "worse", "undecided")}
    parts = [f"{word} at {', '.join(f'{row.multiple:g} x' for row in each)}" for word, each in said.items() if each]
    return f"growing {words} ends {', '.join(parts)}"


def compared_with_scratch(rows: Sequence[Row], deep: bool) -> list[Row]:
    """The final sizes that are grown to, and can be judged."""
    grown = [row for row in rows_of(rows, SIZES) if row.recipe == GROWN and (row.depth > 1) == deep]
    return [row for row in grown if row.verdict]


def in_numbers(rows: Sequence[Row], grown: Sequence[Row], deep: bool, words: str) -> str:
    """Which size is compute-optimal, then differences and compute saved by final size."""
    best, sizes = best_size(rows, deep), ladder(rows, deep)
    end = f", the {'smallest' if best is sizes[0] else 'largest'} tried" if best in (sizes[0], sizes[-1]) else ""
    told = [
        f"{row.multiple:g} x {signed(row.difference)}{f', {percentages(row.saved)} %' if row.saved else ''}"
        for row in grown
        if row.difference
    ]
    optimum = "" if best is None else f" (compute-optimal: {best.multiple:g} x{end})"
    return f"{words}{optimum}: {'; '.join(told)}"


def headline(rows: Sequence[Row], grown: str) -> str:
    """The answer to the question of the study."""
    kinds = [(deep, words, found) for deep, words in KINDS if (found := compared_with_scratch(rows, deep))]
    if not kinds:
        return (
            f"Whether growing {grown} pays is not known: nothing grown can be compared with training from scratch yet."
        )
    verdicts = "; ".join(judged(found, words) for _, words, found in kinds)
    numbers = ". ".join(in_numbers(rows, found, deep, words).capitalize() for deep, words, found in kinds)
    return (
        f"**{grown}, against training from scratch to the same size at equal total FLOPs: {verdicts}.** In bits per "
        f"character (lower is better), and compute saved at equal loss, by final size. {numbers}."
    )


def about_sizes(study: Study, rows: Sequence[Row]) -> str:
    """What the reference is, and how much of the text was read."""
    model, text = study.options["setting"]["model"], study.options["setting"]["train_characters"]
    most = max(run.record["tokens"] for run in study.runs())
    return (
        f"Sizes are multiples of {model['num_param_tokens']} parameter tokens in projections and "
        f"{model['num_ffn_param_tokens']} in the FFN, depths of num_layers {model['num_layers']}. The longest run read "
        f"{most / text:.2f} times as many characters as the training text has."
    )


LEGEND = (
    f"bits/char: {LOSS}, mean ± standard deviation over the seeds. lr x: the learning rate as a multiple of the "
    "recipe's, chosen by validation with a seed that is not reported; * marks an end of those tried. - scratch: "
    "difference from training from scratch to the same size at the same FLOPs, with Welch's 95 % interval; p: "
    "corrected by Holm's method for the differences of the question; better and worse: p < 0.05. saved: 1 - FLOPs / "
    "FLOPs that training from scratch needs for the same loss, read off its losses at several budgets, as the interval "
    "is from that of the difference; negative is lost; <= and >= where the budgets end. base sunk: where only FLOPs "
    "behind the first growth count. jump: the change of bits/char by growth itself, on the same batches of the "
    "validation split, the largest over growths and seeds. seconds: of training, without validation, with as many runs "
    "side by side as there were workers. Shorter and longer runs from scratch have the learning rate that is best at "
    "the budget of all, other shares and recipes that of the main one, but for recipes that are "
    "tuned themselves. FLOPs at equal loss: of training from scratch; beyond the chain: not shared with the chain."
)


def legend(study: Study) -> list[str]:
    """What the ways of training are."""
    names = [GROWN, *study.options["design"]["recipes"]]
    return [
        f"{SCRATCH}: the final size from the start",
        *(f"{name}: {RECIPES[name].text}" for name in names),
        f"{BRANCH}: the chain, trained to its end at a size where it would grow on",
    ]


# Output ---------------------------------------------------------------------------------------------------------------


def all_tables(study: Study, rows: Sequence[Row]) -> Iterator[tuple[str, Sequence[str], list[list[str]], str]]:
    """Title, columns, lines and what stands below, of each table that has lines."""
    family = family_of(rows)
    moments, lines = moment_table(study, rows)
    tables = [
        ("By final size: all FLOPs, and the base sunk", COLUMNS, size_table(rows),
         f"{tests_below(rows_of(rows, SIZES))} {least_words(rows)}"),
        ("By when it grows", COLUMNS, share_table(rows), tests_below(rows_of(rows, SHARES))),
        ("By recipe", (*COLUMNS, *RIVAL), recipe_table(rows), tests_below(rows_of(rows, OF_RECIPES))),
        ("The whole family of sizes", FAMILY_COLUMNS, family_table(family) if family else [],
         f"{family_words(family)} {tests_below(rows_of(rows, FAMILY))}" if family else ""),
        ("At any time", moments, lines, "Validation, the least so far, mean over the seeds, by training FLOPs."),
    ]  # fmt: skip
    yield from (table for table in tables if table[2])


def paragraphs(study: Study, rows: Sequence[Row], heading: str) -> list[str]:
    """All tables in Markdown, and what explains them."""
    parts = [about_sizes(study, rows)]
    for title, columns, lines, below in all_tables(study, rows):
        parts += [f"{heading} {title}", markdown_table(columns, lines), below]
    return [*parts, LEGEND, "\n".join(f"- {line}" for line in legend(study))]


def growth_markdown(study: Study, rows: Sequence[Row], images: Sequence[str]) -> str:
    """The whole report."""
    about = ["# Growth study", headline(rows, subject(study)), f"`{study.command}`"]
    about += [f"![{image.removesuffix('.png')}]({image})" for image in images]
    return "\n\n".join([*about, *paragraphs(study, rows, "##")]) + "\n"


def show(study: Study, rows: Sequence[Row], console: Console) -> None:
    """Print the tables, of which the files have more columns, and the answer."""
    for title, columns, lines, below in all_tables(study, rows):
        shown = [place for place, name in enumerate(columns) if name not in HIDDEN]
        table = new_table([columns[place] for place in shown], title)
        for line in lines:
            table.add_row(*(escape(line[place]) for place in shown))
        console.print(table, highlight=False)
        say(console, below)
    say(console, headline(rows, subject(study)).replace("**", ""))


def runs_csv(study: Study) -> str:
    """A line for each run."""
    lines: list[Sequence[Any]] = [CSV_COLUMNS]
    for run in study.runs():
        labels, record = run.labels, run.record
        lines.append([
            run.name, *(labels[name] for name in LABELS), "rung" in labels, record["status"], record["step"],
            " ".join(map(str, labels["stages"])), " ".join(map(str, labels["parameters"])), record["tokens"],
            record["flops"], record["seconds"], loss_of(run), record["final"].get("val/bits_per_char"),
            " ".join(f"{jump:.3g}" for jump in jumps(run)),
        ])  # fmt: skip
    return csv_text(lines)


def report_growth(study: Study, rows: Sequence[Row], folder: Path, console: Console) -> None:
    """Print the study, and write growth_study.md with its figures, growth_study.csv and the run in TensorBoard."""
    if not study.records:
        return
    show(study, rows, console)
    drawn = figures("growth_study", study, rows)
    for name, figure in drawn.items():
        save(figure, folder / name)
    text = growth_markdown(study, rows, list(drawn))
    write_text(folder / "growth_study.md", text)
    write_text(folder / "growth_study.csv", runs_csv(study))
    write_summary(folder, drawn, text)
