"""What a scorecard trains: every candidate and its baselines on every task, by the same steps, from the same batches.

Each training is a `fit` and a `test` of the study, on the project's own tasks, and what was learned is read from its
record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.machine import ACCELERATORS
from app.scorecard.candidates import Spec, baseline
from app.study.study import Planned, Record, as_options
from datamodules.char_text import split_text
from datamodules.corpora import load_corpus
from models.optim import Optim

TASKS = ("copying", "recall", "char_text")
BINDING = "binding"
LONGER = (1, 4, 16, 64)  # window lengths of text, in those trained on
EASIEST = (64, 4)  # (T, N) of recall that is also asked by value
SPLIT = "90/5/5"  # of text
NAME_DIGITS = 8  # of the options, in a training's name


@dataclass(frozen=True)
class Learning:
    """How long each task is trained and measured, the same for everybody.

    Attributes:
        copying_steps, recall_steps, char_steps, binding_steps: Optimizer steps.
        copying_rows, recall_rows, char_rows, binding_rows: Sequences in a batch.
        seq_len: Characters in a window of text.
        test_rows: Sequences a slice that copying and recall are measured on.
        binding_test_rows: Sequences that binding is measured on.
        test_chars: Characters that are scored, the same at every length of windows.
    """

    copying_steps: int
    recall_steps: int
    char_steps: int
    binding_steps: int
    copying_rows: int = 64
    recall_rows: int = 21  # 4,032 tokens a batch on average
    char_rows: int = 16
    binding_rows: int = 64
    seq_len: int = 256
    test_rows: int = 64
    binding_test_rows: int = 512
    test_chars: int = 65_536

    @property
    def seq_lens(self) -> list[int]:
        """The lengths of windows that text is measured at, the one trained on first."""
        return [self.seq_len * times for times in LONGER]


@dataclass(frozen=True)
class Lesson:
    """A task as a scorecard trains it: its class, optimizer steps, and options where they are not at their defaults."""

    data: str
    steps: int
    options: dict[str, Any]


def lessons(learning: Learning, corpus: str | list[str], data_dir: str) -> dict[str, Lesson]:
    """All tasks."""
    test_chars = max(learning.test_chars, *learning.seq_lens)  # one whole window of the longest at least
    text = {
        "corpus": corpus, "data_dir": data_dir, "split": SPLIT, "seq_len": learning.seq_len,
        "batch_size": learning.char_rows, "test_seq_lens": learning.seq_lens,
        "test_chars": test_chars,
    }  # fmt: skip
    copying = {"batch_size": learning.copying_rows, "num_test_samples": learning.test_rows}
    recall = {"batch_size": learning.recall_rows, "num_test_samples": learning.test_rows, "test_by_value": [EASIEST]}
    binding = {"batch_size": learning.binding_rows, "num_test_samples": learning.binding_test_rows}
    return {
        "copying": Lesson("Copying", learning.copying_steps, copying),
        "recall": Lesson("AssociativeRecall", learning.recall_steps, recall),
        "char_text": Lesson("CharText", learning.char_steps, text),
        BINDING: Lesson("Binding", learning.binding_steps, binding),
    }


def check_text(corpus: str | list[str], data_dir: str, learning: Learning) -> None:
    """Raise ValueError if the text cannot be read, or is too short for the longest windows."""
    text, longest = load_corpus(corpus, data_dir, "--corpus", "--data_dir"), learning.seq_lens[-1]
    if len(split_text(text.ids, SPLIT)["test"]) <= longest:
        raise ValueError(f"--corpus {text.name} is too short for windows of {longest} characters; use a longer text")


# The plan -------------------------------------------------------------------------------------------------------------


def planned(spec: Spec, task: str, lesson: Lesson, seed: int, device: str) -> Planned:
    """One training; its name has digits that any of its options changes."""
    usual = asdict(Optim())
    trainer = {
        "max_steps": lesson.steps, "limit_val_batches": 0, "accelerator": ACCELERATORS[device], "devices": 1,
    }  # fmt: skip
    options = [
        f"--model={spec.model}", *as_options("model", dict(sorted(spec.options.items()))),
        f"--data={lesson.data}", *as_options("data", lesson.options),
        *as_options("optim", {name: value for name, value in asdict(spec.optim).items() if value != usual[name]}),
        *as_options("trainer", trainer),
    ]  # fmt: skip
    digits = hashlib.sha256(" ".join(options).encode()).hexdigest()[:NAME_DIGITS]
    labels = {"task": task, "seed": seed, "spec": asdict(spec)}
    return Planned(f"{task}-{spec.model}-{digits}-s{seed}", labels, [*options, f"--seed_everything={seed}"])


def trainings(
    candidates: Sequence[Spec], tasks: Sequence[str], lessons: dict[str, Lesson], seeds: Sequence[int], device: str
) -> list[Planned]:
    """Candidates and their baselines on all tasks: each once, longest first."""
    pairs = [(candidate, task) for candidate in candidates for task in (*tasks, BINDING)]
    wanted = [(spec, task) for candidate, task in pairs for spec in (candidate, baseline(candidate, task))]
    wanted.sort(key=lambda training: -lessons[training[1]].steps)
    runs = [planned(spec, task, lessons[task], seed, device) for spec, task in wanted for seed in seeds]
    return list({run.name: run for run in runs}.values())


# What was learned -----------------------------------------------------------------------------------------------------


def result(record: Record, metric: str) -> float:
    """What the test gave; NaN, which passes no bar, where it is not finite or the training diverged before."""
    if "test" not in record:
        return math.nan
    value = record["test"][f"test/{metric}"]
    return math.nan if value is None else float(value)
