"""Studies: many runs under one plan, each an ordinary `fit` with its own record, gathered in one `study.json`.

The file is the compact form from which every report is made, and which can be kept when the runs are thrown away: the
command and the options, and for each run its name, labels, `fit` options and the record without what reports do not
read. It is written whole or not at all, after every run. What needs PyTorch is imported by the functions that use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from callbacks.atomic import json_text, write_text

FORMAT = 1
STUDY_FILE = "study.json"
SCALING_FILE = "scaling.json"  # of `scaling`, beside whose runs a study's own file may lie
DIGITS = 7  # kept of a number
KEPT = (
    "format", "model", "model_options", "data", "data_options", "chance", "optim", "seed", "max_steps", "versions",
    "device", "processes", "precision", "matmul_precision", "step", "tokens", "flops", "seconds", "parameters",
    "status", "growth_events", "final", "test", "measured",
)  # fmt: skip
KEPT_OF_A_VALIDATION = (
    "step", "tokens", "flops", "seconds", "parameters", "val/loss", "val/bits_per_char", "val/accuracy",
)  # fmt: skip
Record = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """One run of a study.

    Attributes:
        name: Its folder below the study's; two runs of equal names are the same run.
        labels: What tables group by, such as model, task, size and seed.
        options: Options of `fit`, without --run_dir.
        test: Whether to measure the end of the run on the test split, too.
    """

    name: str
    labels: dict[str, Any]
    options: list[str]
    test: bool = True


@dataclass(frozen=True)
class StudiedRun:
    """A run of which there is a record."""

    name: str
    labels: dict[str, Any]
    record: Record


@dataclass
class Study:
    """A plan and the records of what is done of it.

    Attributes:
        verb: What made it, such as `compare`.
        command: The whole command line, beside which its numbers can be printed.
        options: The verb's options, which decide the plan.
        plan: The runs.
        records: Records of finished runs, by name.
        findings: What the verb concluded, as JSON has it.
    """

    verb: str
    command: str
    options: dict[str, Any]
    plan: list[Planned]
    records: dict[str, Record] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    def runs(self, **labels: Any) -> list[StudiedRun]:
        """The finished runs, in the order of the plan, that carry these labels."""
        return [
            StudiedRun(run.name, run.labels, self.records[run.name])
            for run in self.plan
            if run.name in self.records and all(run.labels.get(k) == v for k, v in labels.items())
        ]

    def save(self, folder: Path, file_name: str = STUDY_FILE) -> None:
        """Write the study's file into the folder, a line a run."""
        about = {"format": FORMAT, "verb": self.verb, "command": self.command, "options": self.options}
        about |= {"findings": self.findings}
        members = ", ".join(f"{json_text(name)}: {json_text(value)}" for name, value in about.items())
        runs = ",\n".join(json_text(asdict(run) | {"record": self.records.get(run.name)}) for run in self.plan)
        write_text(folder / file_name, f'{{{members}, "runs": [\n{runs}\n]}}\n')


def study_of(
    verb: str, command: str, options: dict[str, Any], runs: Sequence[StudiedRun], findings: dict[str, Any]
) -> Study:
    """A study of runs that were there before; of two that have one name, as those of two studies, one is renamed."""
    study = Study(verb, command, options, [], findings=findings)
    for number, run in enumerate(runs, start=1):
        name = f"{run.name} ({number})" if run.name in study.records else run.name
        study.plan.append(Planned(name, run.labels, []))
        study.records[name] = read_by_reports(run.record)
    return study


def as_options(prefix: str, values: Mapping[str, Any]) -> list[str]:
    """Values as options of `fit` that begin with `--prefix.`."""
    return [
        f"--{prefix}.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    ]


def compact(record: Record) -> Record:
    """What reports read of a record, with fewer digits."""
    short: Record = rounded(read_by_reports(record))
    return short


def read_by_reports(record: Record) -> Record:
    """A record without its command, and of its history the validations of the whole split."""
    validations = (point for point in record["history"] if any(key.startswith("val/") for key in point))
    history = [{key: point[key] for key in KEPT_OF_A_VALIDATION if key in point} for point in validations]
    return {key: record[key] for key in KEPT if key in record} | {"history": history}


def rounded(value: Any) -> Any:
    """A plain value with `DIGITS` digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_study(path: Path) -> Study:
    """The study in a file; ValueError says what is wrong with it."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"it is of format {plain['format']}, not {FORMAT}")
        plan = [Planned(**{key: run[key] for key in ("name", "labels", "options", "test")}) for run in plain["runs"]]
        records = {run["name"]: run["record"] for run in plain["runs"] if run["record"]}
        return Study(plain["verb"], plain["command"], plain["options"], plan, records, plain["findings"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a study: {describe(error)}") from error


def study_file(path: Path) -> Path:
    """The study's file in a folder, or the path itself."""
    if not path.is_dir():
        return path
    return path / (SCALING_FILE if (path / SCALING_FILE).exists() and not (path / STUDY_FILE).exists() else STUDY_FILE)


def describe(error: Exception) -> str:
    """An exception in words."""
    return f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
