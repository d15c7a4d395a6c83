"""`python -m app scaling`: fit scaling laws to runs, and say how sure they are and what they predict.

What is fitted is in `app.fits`, which runs count is in `app.points`, which laws are tried is in `app.laws`. PyTorch
and what needs it are imported by the functions that use them, so that `scaling --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from app.laws import Attempt, Survey

WIDTH = 100  # of what is printed where no terminal says how wide it is
MIN_RESAMPLES = 100  # fewer do not fill the ends of an interval
CURVE_POINTS = 100
PANELS = {"L(N)": "parameters N", "L(D)": "training tokens D"}


def scaling(
    runs: list[Path],
    *,
    metric: str = "val/bits_per_char",
    intervals: float = 0.9,
    resamples: int = 500,
    seed: int = 1,
    out: Path | None = None,
    tensorboard: bool = False,
) -> int:
    """Fit L(N), L(D) and L(N, D) to finished runs, one law a model, with intervals, forecasts and optimal sizes.

    Args:
        runs: Run folders, folders of run folders, or study.json files, all of one task.
        metric: Loss to fit: of the final validation, such as val/loss, or of the test, such as test/bits_per_char.
        intervals: Share of the refits inside an interval.
        resamples: Refits of the bootstrap.
        seed: Of the bootstrap.
        out: Folder to write scaling.json, scaling.md, scaling.csv and scaling.png to; by default nothing is written.
        tensorboard: Write the figure and the tables for TensorBoard, too, in the folder tensorboard in --out.

    Returns:
        0; a model or a law with too few runs is named, and is an error only if no law can be fitted at all.
    """
    check_options(runs, intervals, resamples, seed, out, tensorboard)
    from rich.console import Console

    from app.laws import survey
    from app.points import by_model, check_metric, collect
    from app.studies import gather

    check_metric(metric)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    gathered = gather(runs)
    if not gathered.runs and not gathered.skipped:
        raise ValueError(f"RUNS {', '.join(map(str, runs))}: no record.json in them; train with `python -m app fit`")
    points, skipped = collect(gathered, metric)
    for line in skipped:
        console.print(f"skipped {line}", markup=False, highlight=False, soft_wrap=True)
    if not points:
        raise ValueError(f"RUNS have no run to fit: {len(skipped)} skipped, {skipped[0]}")
    options = {"level": intervals, "resamples": resamples, "seed": seed}
    surveys = [survey(model, own, **options) for model, own in by_model(points).items()]
    if not any(one.fitted for one in surveys):
        reasons = (f"{one.model}: {one.attempts[0].fitted}; {one.attempts[1].fitted}" for one in surveys)
        raise ValueError(f"RUNS allow no law; {' | '.join(reasons)}; add runs of other sizes or lengths")
    for one in surveys:
        console.print(table(one, intervals), highlight=False, markup=False)
    if out is not None:
        about = {"metric": metric, "intervals": intervals, "resamples": resamples, "seed": seed, "skipped": skipped}
        write(out, surveys, about, tensorboard)
        console.print(f"results in {out}", markup=False, highlight=False)
    return 0


def check_options(
    runs: list[Path], intervals: float, resamples: int, seed: int, out: Path | None, tensorboard: bool
) -> None:
    """Raise ValueError for what cannot be done, before anything is read."""
    if not runs:
        raise ValueError("RUNS is empty; name a run folder, a folder of them, or a study.json")
    if not 0 < intervals < 1:
        raise ValueError(f"--intervals {intervals} is not between 0 and 1; use 0.9 for 90 %")
    if resamples < MIN_RESAMPLES:
        raise ValueError(f"--resamples is {resamples}; it must be at least {MIN_RESAMPLES}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed} is not between 0 and 2^32 - 1")
    if tensorboard and out is None:
        raise ValueError("--tensorboard needs a folder to write to; give it by --out")
    for folder in (out, *out.parents) if out is not None else ():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {out} cannot be written: {folder} is no folder; name another")


# Tables ---------------------------------------------------------------------------------------------------------------


def table(found: Survey, level: float) -> Any:
    """What was found of one model, for the terminal."""
    from rich import box
    from rich.table import Table

    from app.laws import rows_of

    drawn = Table(box=box.SIMPLE_HEAD, title=f"{found.model}, {len(found.points)} runs", title_justify="left")
    drawn.add_column("", no_wrap=True)
    drawn.add_column("value", justify="right", no_wrap=True)
    drawn.add_column(f"{level:.0%} interval")
    for rows in rows_of(found):
        for place, row in enumerate(rows):
            drawn.add_row(*row, end_section=place == len(rows) - 1)
    return drawn


def markdown(surveys: Sequence[Survey], about: dict[str, Any]) -> str:
    """The same for a file, with the figure, and what was skipped."""
    from app.laws import rows_of

    lines = [f"# Scaling of {about['metric']}", "", "![the laws](scaling.png)"]
    for found in surveys:
        lines += ["", f"## {found.model}, {len(found.points)} runs", ""]
        lines += [f"| | value | {about['intervals']:.0%} interval |", "| :-- | --: | :-- |"]
        lines += [f"| {' | '.join(cell.strip() for cell in row)} |" for rows in rows_of(found) for row in rows]
    if about["skipped"]:
        lines += ["", "Skipped:", "", *(f"- {line}" for line in about["skipped"])]
    return "\n".join(lines) + "\n"


# Figure ---------------------------------------------------------------------------------------------------------------


def drawn_law(found: Attempt, model: str, variable: str) -> Any:
    """Points of one law, its line up to twice the largest size, and its band."""
    import numpy as np

    from app.figures import Series
    from app.laws import losses_of, sizes_of

    sizes = sizes_of(found.points, variable)[variable]
    points, label = (sizes, losses_of(found.points)), f"{model}, {found.at}"
    if isinstance(found.fitted, str) or found.fitted.undetermined:
        return Series(label, points)
    x = np.geomspace(sizes.min(), 2 * sizes.max(), CURVE_POINTS)
    return Series(label, points, (x, found.fitted.law.predict(x)), found.fitted.band(x))


def drawn_frontier(found: Survey) -> Any:
    """Runs by budget and size, and the sizes of least loss with their band."""
    import numpy as np

    from app.figures import Series

    flops, sizes = [point.flops for point in found.points], [point.parameters for point in found.points]
    if isinstance(found.frontier, str):
        return None
    x = np.geomspace(found.budgets().min(), found.budgets().max(), CURVE_POINTS)
    return Series(f"{found.model}, runs", (flops, sizes), (x, found.frontier.sizes(x)[0]), found.frontier.band(x))


def draw(surveys: Sequence[Survey], metric: str) -> Figure:
    """L(N), L(D) and, where one is known, the compute-optimal frontier."""
    from app.figures import Panel, scaling_figure

    unit = "bits a character" if "bits_per_char" in metric else "nats a token"
    panels = []
    for place, (name, x_label) in enumerate(PANELS.items()):
        series = [drawn_law(one.attempts[place], one.model, name[2]) for one in surveys]
        panels.append(Panel(name, x_label, f"{metric} ({unit})", series))
    edges = [drawn_frontier(one) for one in surveys]
    if any(edges):
        panels.append(Panel("compute-optimal size", "training compute C (FLOPs)", "parameters N", edges, decades=True))
    return scaling_figure(panels)


# Files ----------------------------------------------------------------------------------------------------------------


def csv_lines(surveys: Sequence[Survey], metric: str) -> Iterator[Sequence[Any]]:
    """A line a run."""
    yield "run", "model", "seed", "parameters", "tokens", "flops", metric
    for found in surveys:
        for p in found.points:
            yield p.run, p.model, p.seed, p.parameters, p.tokens, p.flops, p.loss


def write(out: Path, surveys: Sequence[Survey], about: dict[str, Any], tensorboard: bool) -> None:
    """Write every file, each whole or not at all."""
    import csv
    import io

    from app.bench import write_json
    from app.figures import pixels, save
    from app.reports import write_text
    from app.studies import command_line
    from callbacks.records import finite

    text, figure, lines = markdown(surveys, about), draw(surveys, about["metric"]), io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(csv_lines(surveys, about["metric"]))
    save(figure, out / "scaling.png")
    write_text(out / "scaling.md", text)
    write_text(out / "scaling.csv", lines.getvalue())
    if tensorboard:
        write_events(out / "tensorboard", pixels(figure), text)
    found = [one.plain() for one in surveys]
    write_json(out / "scaling.json", finite({"command": command_line(), **about, "models": found}))


def write_events(folder: Path, image: Any, text: str) -> None:
    """Put TensorBoard's events in the place of those that an earlier call left there."""
    from contextlib import closing

    from torch.utils.tensorboard import SummaryWriter

    before = list(folder.glob("events.out.tfevents.*"))
    with closing(SummaryWriter(str(folder), filename_suffix=".scaling")) as writer:
        writer.add_image("scaling/laws", image, 0, dataformats="HWC")
        writer.add_text("scaling/tables", text, 0)
    for file in before:
        file.unlink(missing_ok=True)
