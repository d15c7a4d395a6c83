"""Runs that are there: gathered from run folders, folders of them, and study files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.study.study import STUDY_FILE, StudiedRun, read_study


@dataclass
class Gathered:
    """Runs that were found, and a line for each that could not be used."""

    runs: list[StudiedRun] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path]) -> Gathered:
    """The runs in run folders, in folders of run folders (at any depth), and in study files.

    What is damaged or of another format is skipped, and named. ValueError if a path does not exist.
    """
    found = Gathered()
    for path in paths:
        if not path.exists():
            raise ValueError(f"RUNS {path} does not exist; name a run folder, a folder of them, or a study.json")
        for file in records_in(path):
            try:
                found.runs += runs_of(file)
            except ValueError as error:
                found.skipped.append(str(error))
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
    return [run for run in study.runs() if run.name in chosen and "rung" not in run.labels]
