"""Runs that are there: gathered from run folders, folders of them, and study files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.study.rates import RUNG, SEARCH, at_chosen_rate
from app.study.study import STUDY_FILE, StudiedRun, Study, read_study

RATES, RATE_AT_END = "rates", "rate_at_end"  # labels: learning rates tried, whether a run's is an end of them
CHECK = "check"  # label: the run is not fitted, but held beside the fit


@dataclass
class Gathered:
    """Runs that were found, and a line for each that could not be used."""

    runs: list[StudiedRun] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path], checks: Sequence[Path] = ()) -> Gathered:
    """The runs in run folders, in folders of run folders (at any depth), and in study files.

    What is damaged or of another format is skipped, and named. ValueError if a path does not exist.

    Args:
        paths: Where they are.
        checks: Where there are more, which get a label that keeps them from being fitted.
    """
    found = Gathered()
    for path, labels in [*((path, {}) for path in paths), *((path, {CHECK: True}) for path in checks)]:
        if not path.exists():
            option = "--check" if labels else "RUNS"
            raise ValueError(f"{option} {path} does not exist; name a run folder, a folder of them, or a study.json")
        for file in records_in(path):
            try:
                runs = runs_of(file)
            except ValueError as error:
                found.skipped.append(str(error))
                continue
            found.runs += [replace(run, labels=run.labels | labels) for run in runs]
    return found


def records_in(path: Path) -> Iterator[Path]:
    """The file itself; of a folder its study, its record, or else those of all folders below."""
    if path.is_file():
        yield path
        return
    for name in (STUDY_FILE, "record.json"):
        if (path / name).exists():
            yield path / name
            return
    for folder in sorted(child for child in path.iterdir() if child.is_dir()):
        yield from records_in(folder)


def runs_of(file: Path) -> list[StudiedRun]:
    """The runs in one file, a record or a study; of a study the chosen ones, and none of a search."""
    from callbacks.record_file import read_record

    if file.name == "record.json":
        return [StudiedRun(str(file.parent), {}, read_record(file))]
    study = read_study(file)
    chosen = study.findings.get("chosen", study.records)
    return with_rates(study, [run.name for run in study.runs() if run.name in chosen and RUNG not in run.labels])


def with_rates(study: Study, names: Container[str]) -> list[StudiedRun]:
    """The runs of these names; a run chosen among several learning rates has labels that say so."""
    groups: dict[str, list[StudiedRun]] = defaultdict(list)
    for run in study.runs():
        groups[place_of(run)].append(run)
    searches = {run.name: run.labels.get(SEARCH, {}) for group in groups.values() for run in chosen_of(group)}
    return [labelled(run, searches.get(run.name, {})) for run in study.runs() if run.name in names]


def chosen_of(group: Sequence[StudiedRun]) -> list[StudiedRun]:
    """Those of runs that differ in learning rate and seed only whose rate was chosen; without rates all."""
    return at_chosen_rate(group) if all("factor" in run.labels for run in group) else list(group)


def labelled(run: StudiedRun, search: dict[str, Any]) -> StudiedRun:
    """The run with labels that say how its learning rate was chosen, unless it has them already."""
    tried = search.get("rates", search.get("trials"))
    known = {} if tried is None or RATES in run.labels else {RATES: tried, RATE_AT_END: bool(search["edge"])}
    return replace(run, labels=run.labels | known)


def place_of(run: StudiedRun) -> str:
    """What runs share that differ in learning rate and seed only."""
    return repr({name: value for name, value in run.labels.items() if name not in ("factor", "seed")})
