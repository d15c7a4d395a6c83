"""All that a scorecard measures on one model, in order: trainings side by side, then alone what is timed.

The baseline is trained, probed and streamed once for all candidates of its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.benchmark.mixers import Tell
from app.benchmark.workloads import VOCAB_SIZE, Stream
from app.machine import about_machine
from app.scorecard.candidates import Spec, baseline, relatives
from app.scorecard.card import Scorecard
from app.scorecard.costs import Streamed, Timing, affordable, measure_costs, read_stream
from app.scorecard.operations import Probed, probe
from app.scorecard.requirements import Measured, Trainings, findings
from app.scorecard.training import BINDING, Job, Learning, Trained, run_jobs
from callbacks.atomic import finite


@dataclass(frozen=True)
class Budget:
    """How much is measured; the same for all models."""

    learning: Learning
    timing: Timing
    seeds: int


SEQ_LENS = (256, 1024, 4096, 16_384)
BUDGETS = {
    "quick": Budget(
        Learning(copying_steps=300, recall_steps=400, char_steps=800, binding_steps=300),
        Timing(SEQ_LENS, tokens=16_384, repeats=7, seconds=8.0, stream_tokens=100_000, stream_seconds=120.0),
        seeds=1,
    ),
    "full": Budget(
        Learning(
            copying_steps=2000, recall_steps=2000, char_steps=2500, binding_steps=1500, test_rows=256,
            test_chars=262_144,
        ),
        Timing(SEQ_LENS, tokens=16_384, repeats=20, seconds=45.0, stream_tokens=100_000, stream_seconds=900.0),
        seeds=3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ScorecardSettings:
    """What the command line says of how to measure."""

    budget: Budget
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    corpus: str
    data_dir: str
    device: str
    workers: int
    tell: Tell


class Surveyor:
    """Measures one candidate after the other, and remembers what it has found of the baseline."""

    def __init__(self, settings: ScorecardSettings) -> None:
        self.settings = settings
        self.trained: list[tuple[Job, Trained]] = []
        self.baselines: list[tuple[Spec, Probed, Streamed]] = []

    def jobs(self, spec: Spec, tasks: Sequence[str]) -> list[Job]:
        """The trainings of a configuration, a seed each."""
        s = self.settings
        return [
            Job(spec, task, seed, s.budget.learning, s.corpus, s.data_dir, s.device)
            for task in tasks
            for seed in s.seeds
        ]

    def train(self, candidate: Spec, one_layer: Spec, two_layers: Spec) -> None:
        """Run the trainings that are still to be done, side by side."""
        tasks = (*self.settings.tasks, BINDING)
        wanted = self.jobs(candidate, tasks) + self.jobs(one_layer, tasks)
        if "recall" in tasks:
            wanted += self.jobs(two_layers, ("recall",))
        done = [job for job, _ in self.trained]
        todo = [job for job in wanted if job not in done]
        self.settings.tell(f"training {len(todo)} models, {self.settings.workers} side by side ...")
        self.trained += run_jobs(todo, self.settings.workers, self.tell_of)

    def tell_of(self, job: Job, trained: Trained) -> None:
        """Say that a training is done, and its first value."""
        name, value = next(iter(trained.values.items()))
        layers = f"{job.spec.options.get('num_layers', 1)} layer(s)"
        self.settings.tell(
            f"  {job.spec.model}, {layers}, {job.task}, seed {job.seed}: {name} {value:.3f} after {trained.tokens:,} "
            f"tokens, {trained.seconds:.0f} s"
        )

    def probe_and_stream(self, spec: Spec) -> tuple[Probed, Streamed]:
        """What can be seen of a configuration by itself, with random tokens and weights."""
        s = self.settings
        model = spec.build(VOCAB_SIZE, s.device)
        s.tell(f"measuring operations of {spec.model} ...")
        probed = probe(model, s.device)
        s.tell(f"measuring a stream of {spec.model} ...")
        timing = s.budget.timing
        return probed, read_stream(Stream(model, s.device), timing.stream_tokens, timing.stream_seconds)

    def of_baseline(self, spec: Spec) -> tuple[Probed, Streamed]:
        """The same of a baseline, remembered."""
        for known, probed, streamed in self.baselines:
            if known == spec:
                return probed, streamed
        self.baselines.append((spec, *self.probe_and_stream(spec)))
        return self.baselines[-1][1:]

    def measure(self, candidate: Spec) -> Measured:
        """Everything on one candidate."""
        s = self.settings
        model = candidate.build(VOCAB_SIZE, s.device)
        one_layer, two_layers = (baseline(model.d_model, num_layers) for num_layers in (1, 2))
        self.train(candidate, one_layer, two_layers)
        (probed_baseline, streamed_baseline) = self.of_baseline(one_layer)
        probed, streamed = self.probe_and_stream(candidate)
        timing = s.budget.timing
        seq_lens = affordable(timing.seq_lens, probed, timing.tokens)
        other = one_layer.build(VOCAB_SIZE, s.device)
        costs = measure_costs(model, other, seq_lens, timing, s.device, s.tell)
        return Measured(
            candidate, one_layer, two_layers, s.budget.learning, Trainings(self.trained), (probed, probed_baseline),
            costs, (streamed, streamed_baseline),
        )  # fmt: skip

    def card(self, candidate: Spec) -> Scorecard:
        """Measure a candidate, and judge it."""
        measured = self.measure(candidate)
        about = {
            "machine": about_machine(self.settings.device),
            "candidate": asdict(candidate),
            "baseline": asdict(measured.one_layer),
            "tasks": self.settings.tasks,
            "seeds": self.settings.seeds,
            "corpus": self.settings.corpus,
            "budget": asdict(self.settings.budget),
            "trainings": [training(job, trained) for job, trained in self.trained if concerns(job, measured)],
            "probes": [asdict(probed) for probed in measured.probed],
            "streams": [asdict(streamed) for streamed in measured.streamed],
            "costs": asdict(measured.costs),
        }
        return Scorecard(candidate.model, findings(measured), relatives(candidate.model), about)


def concerns(job: Job, measured: Measured) -> bool:
    """Whether a training is of this candidate or of what it is measured against."""
    return job.spec in (measured.candidate, measured.one_layer, measured.two_layers)


def training(job: Job, trained: Trained) -> dict[str, Any]:
    """A training as it stands in the JSON file."""
    values = {name: finite(value) for name, value in trained.values.items()}
    layers = job.spec.options.get("num_layers")
    of = {"model": job.spec.model, "num_layers": layers, "task": job.task, "seed": job.seed}
    return of | asdict(trained) | {"values": values}
