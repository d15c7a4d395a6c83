"""Training for a scorecard: every model on every task, in the same order, from the same batches, with equal tokens.

A `Job` is one such training: a pure function of what it holds, on one thread, whatever runs beside it. Jobs run in
processes of their own, as many as there are cores, or one after the other where there is one device for all. Batches
are the project's own; a step is what the Trainer would do, its randomness seeded in the same way.

Shapes: B rows, T time, N scored positions of a batch, V vocabulary.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
import torch.nn.functional as F

from app.benchmark.timing import nothing
from app.benchmark.workloads import bare_training
from app.machine import num_threads
from app.scorecard.binding import BindingTask, asked_by_value
from app.scorecard.candidates import Spec, body_parameters, fingerprint
from datamodules import AssociativeRecall, CharText, Copying, TaskData
from datamodules.corpora import load_corpus
from models.base import Batch, LanguageModel, mixed_seed
from models.metrics import IGNORED

TASKS = ("copying", "recall", "char_text")
BINDING = "binding"
LONGER = (1, 4, 16, 64)  # window lengths of text, in those trained on
Values = dict[str, float]


@dataclass(frozen=True)
class Learning:
    """How long each task is trained and measured, the same for everybody.

    Attributes:
        copying_steps, recall_steps, char_steps, binding_steps: Optimizer steps.
        copying_rows, recall_rows, char_rows, binding_rows: Sequences in a batch.
        seq_len: Characters in a window of text.
        test_rows: Sequences a slice that copying, recall and binding are measured on.
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
    test_chars: int = 65_536

    def steps(self, task: str) -> int:
        """Optimizer steps of a task."""
        return {
            "copying": self.copying_steps, "recall": self.recall_steps, "char_text": self.char_steps,
            BINDING: self.binding_steps,
        }[task]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training: of a model, on a task, from a seed."""

    spec: Spec
    task: str
    seed: int
    learning: Learning
    corpus: str
    data_dir: str
    device: str = "cpu"


@dataclass(frozen=True)
class Trained:
    """What came of a job: the model's fingerprint and sizes, the tokens it read, and what was measured on it."""

    fingerprint: str
    parameters: int
    body_parameters: int
    tokens: int
    seconds: float
    values: Values


# Tasks ----------------------------------------------------------------------------------------------------------------


def task_data(job: Job) -> TaskData:
    """The task at its defaults, for as long as `job.learning` says."""
    learning = job.learning
    if job.task == "copying":
        return Copying(batch_size=learning.copying_rows, num_test_samples=learning.test_rows, seed=job.seed)
    if job.task == "recall":
        return AssociativeRecall(batch_size=learning.recall_rows, num_test_samples=learning.test_rows, seed=job.seed)
    return text_data(job.corpus, job.data_dir, learning, job.seed)


def text_data(corpus: str, data_dir: str, learning: Learning, seed: int = 0) -> CharText:
    """The text, tested by windows of all lengths; ValueError, naming --corpus, if it is too short for them."""
    test_seq_lens = [learning.seq_len * times for times in LONGER]
    data = CharText(
        corpus=corpus, data_dir=data_dir, seq_len=learning.seq_len, batch_size=learning.char_rows,
        test_seq_lens=test_seq_lens, seed=seed,
    )  # fmt: skip
    data.corpus = load_corpus(corpus, data_dir, "--corpus", "--data_dir")
    try:
        data.check()
    except ValueError as error:
        raise ValueError(
            f"--corpus {corpus} is too short for windows of {test_seq_lens[-1]} characters; use a longer text"
        ) from error
    return data


def check_text(tasks: Sequence[str], corpus: str, data_dir: str, learning: Learning) -> None:
    """Raise ValueError if the text is needed, but cannot be read or is too short."""
    if "char_text" in tasks:
        text_data(corpus, data_dir, learning)


def endless(data: TaskData) -> Iterator[Batch]:
    """The training stream, epoch after epoch."""
    return chain.from_iterable(repeat(data.train_dataloader()))


@torch.no_grad()
def tally(model: LanguageModel, batches: Iterable[Batch], max_scored: float = math.inf) -> tuple[float, float]:
    """Bits and accuracy over the scored positions of the batches, until there are `max_scored`."""
    nats, right, scored = 0.0, 0, 0
    model.eval()
    for inputs_BT, targets_BT in batches:
        is_scored_BT = targets_BT != IGNORED
        targets_N = targets_BT[is_scored_BT].to(model.device)
        logits_NV = model.head(model.features(inputs_BT.to(model.device))[is_scored_BT.to(model.device)]).float()
        nats += float(F.cross_entropy(logits_NV, targets_N, reduction="sum"))
        right += int((logits_NV.argmax(-1) == targets_N).sum())
        scored += targets_N.numel()
        if scored >= max_scored:
            break
    return nats / scored / math.log(2), right / scored


def measure_accuracy(model: LanguageModel, data: TaskData) -> Values:
    """Accuracy on each slice of the test, and their mean."""
    loaders = zip(data.slice_names("test"), data.test_dataloader(), strict=True)
    values = {f"accuracy/{name}": tally(model, loader)[1] for name, loader in loaders}
    return {"accuracy": sum(values.values()) / len(values)} | values


def measure_recall(model: LanguageModel, data: TaskData) -> Values:
    """Accuracy by slice; on the first slice also that of finding the key when asked with the value."""
    values = measure_accuracy(model, data)
    easiest, turned_round = data.slice_names("test")[0], map(asked_by_value, data.test_dataloader()[0])
    return values | {"by_key": values[f"accuracy/{easiest}"], "by_value": tally(model, turned_round)[1]}


def measure_text(model: LanguageModel, data: CharText, learning: Learning) -> Values:
    """Bits per character of the same characters at each length of windows."""
    longest = max(data.test_seq_lens)
    whole_windows = (len(data.parts["test"]) - 1) // longest
    scored = longest * min(whole_windows, -(-learning.test_chars // longest))
    loaders = zip(data.test_seq_lens, data.test_dataloader(), strict=True)
    return {f"bits/{seq_len}": tally(model, loader, scored)[0] for seq_len, loader in loaders}


# A job ----------------------------------------------------------------------------------------------------------------


def train(model: LanguageModel, batches: Iterable[Batch], steps: int, seed: int) -> int:
    """Train for so many steps; returns the tokens read. Each step's randomness is that of the Trainer's."""
    step, _ = bare_training(model.train(), steps)
    tokens = 0
    for number, (inputs_BT, targets_BT) in enumerate(islice(batches, steps)):
        torch.manual_seed(mixed_seed(seed, 0, number))
        step((inputs_BT.to(model.device), targets_BT.to(model.device)))
        tokens += inputs_BT.numel()
    return tokens


def run_job(job: Job) -> Trained:
    """Build, train and measure."""
    start = time.perf_counter()
    learning = job.learning
    binding = BindingTask(job.seed, learning.binding_rows)
    data = None if job.task == BINDING else task_data(job)
    vocab_size: int = binding.vocab_size if data is None else data.vocab_size
    torch.manual_seed(job.seed)
    model = job.spec.build(vocab_size, job.device)
    batches = binding.train_batches() if data is None else endless(data)
    tokens = train(model, batches, learning.steps(job.task), job.seed)
    if data is None:
        values = binding.confusion(model, 8 * learning.test_rows, job.device)
    elif isinstance(data, CharText):
        values = measure_text(model, data, learning)
    else:
        values = measure_recall(model, data) if job.task == "recall" else measure_accuracy(model, data)
    body = body_parameters(job.spec, vocab_size)
    seconds = time.perf_counter() - start
    return Trained(fingerprint(model), model.num_parameters(), body, tokens, seconds, values)


# Many jobs ------------------------------------------------------------------------------------------------------------


def begin_worker() -> None:
    """Let PyTorch use one thread in this process, and end it with the one that started it, whatever ended that."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Start processes that leave Ctrl-C, which the terminal sends to all, to this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each once, those with most to do first."""
    different: list[Job] = []
    for job in jobs:
        if job not in different:
            different.append(job)
    return sorted(different, key=lambda job: -job.learning.steps(job.task) * int(job.spec.options.get("num_layers", 1)))


def run_jobs(
    jobs: Sequence[Job], workers: int, tell: Callable[[Job, Trained], Any] = nothing
) -> list[tuple[Job, Trained]]:
    """Run all jobs, each once, in so many processes, or here if that is 1; `tell` hears of each that is done."""
    found = []
    run = in_processes if workers > 1 and len(jobs) > 1 else here
    for job, trained in run(longest_first(jobs), workers):
        tell(job, trained)
        found.append((job, trained))
    return found


def here(jobs: Sequence[Job], workers: int = 1) -> Iterator[tuple[Job, Trained]]:
    """Run the jobs one after the other in this process, on one thread."""
    for job in jobs:
        with num_threads(1):
            trained = run_job(job)
        yield job, trained


def in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Trained]]:
    """Run the jobs side by side; if that is interrupted, or one fails, all processes end."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(min(workers, len(jobs)), context, begin_worker)
    try:
        with interrupts_ignored():
            futures = {executor.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
