"""`python -m app scaling`: fit scaling laws to runs, and say how sure they are and what they predict.

What is fitted is in `app.scaling.law`, which runs count is in `app.scaling.points`, which laws are tried is in
`app.scaling.survey`. PyTorch and what needs it are imported by the functions that use them, so that `scaling --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.checks import check_folder, check_seed
from app.cli.invocation import command_line
from app.output.progress import announce, say
from app.output.tables import new_console

if TYPE_CHECKING:
    from app.study.gather import Gathered

MIN_RESAMPLES = 100  # fewer do not fill the ends of an interval


def scaling(
    runs: list[Path],
    *,
    check: list[Path] | None = None,
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
        check: Further runs, as RUNS, which are not fitted but held beside what the laws predict of them: first of all
            one at the predicted optimum, whose command is printed.
        metric: Loss to fit: of the final validation, such as val/loss, or of the test, such as test/bits_per_char.
        intervals: Share of the refits inside an interval.
        resamples: Refits of the bootstrap.
        seed: Seed of the bootstrap.
        out: Folder to write scaling.json, which `report` reads, scaling.md, scaling.csv and scaling.png to; by default
            nothing is written.
        tensorboard: Write the figure and the tables for TensorBoard, too, in the folder tensorboard in --out.

    Returns:
        0; a model or a law with too few runs is named, and is an error only if no law can be fitted at all.
    """
    check_options(runs, intervals, resamples, seed, out, tensorboard)
    checked = [] if check is None else check
    from app.scaling.points import check_metric, collect
    from app.scaling.report import table, write
    from app.scaling.survey import LEGEND, surveys_of
    from app.study.gather import gather
    from app.study.study import study_of

    check_metric(metric)
    console = new_console()
    collected = collect(found(gather(runs, checked), runs), metric)
    points, skipped = collected.points, collected.skipped
    if not points:
        reason = skipped[0] if len(skipped) == 1 else f"{len(skipped)} skipped, such as {skipped[-1]}"
        raise ValueError(f"RUNS have no run to fit: {reason}; add finished runs of ten warm-ups or more")
    announce(f"scaling: laws of {metric} in {len(points)} runs, each fitted {resamples + 1} times")
    for line in skipped:
        say(console, f"skipped {line}")
    surveys = surveys_of(collected, console, level=intervals, resamples=resamples, seed=seed)
    if all(isinstance(law.fitted, str) for survey in surveys for law in survey.attempts):
        reasons = (f"{s.model}: {'; '.join(str(law.fitted) for law in s.alone.values())}" for s in surveys)
        raise ValueError(f"RUNS allow no law; {' | '.join(reasons)}; add runs of other sizes or lengths")
    for survey in surveys:
        console.print(table(survey, intervals), highlight=False, markup=False)
    say(console, LEGEND)
    if out is not None:
        options = {"metric": metric, "intervals": intervals, "resamples": resamples, "seed": seed}
        findings = {"skipped": skipped, "models": [survey.plain() for survey in surveys]}
        write(out, surveys, study_of("scaling", command_line(), options, collected.runs, findings), tensorboard)
        say(console, f"results in {out}")
    return 0


def found(gathered: Gathered, runs: list[Path]) -> Gathered:
    """What was gathered; ValueError if it is nothing."""
    if not gathered.runs and not gathered.skipped:
        raise ValueError(f"RUNS {', '.join(map(str, runs))}: no record.json in them; train with `python -m app fit`")
    return gathered


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
    check_seed("seed", seed)
    if tensorboard and out is None:
        raise ValueError("--tensorboard needs a folder to write to; give it by --out")
    if out is not None:
        check_folder("--out", out)
