"""What a scorecard measures beside the trainings of its study: operations, a stream, and what is timed, alone.

The baseline of these is the one for text; it is probed and streamed once for all candidates of its width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from app.benchmark.mixers import Tell
from app.benchmark.workloads import VOCAB_SIZE, Stream
from app.machine import about_machine
from app.scorecard.candidates import Spec, baseline, relatives
from app.scorecard.card import Scorecard
from app.scorecard.costs import Streamed, Timing, affordable, measure_costs, read_stream
from app.scorecard.operations import Probed, probe
from app.scorecard.requirements import Measured, findings
from app.scorecard.training import BINDING, TASKS, Learning
from app.study.study import Study


@dataclass(frozen=True)
class Budget:
    """How much is measured; the same for all models."""

    learning: Learning
    timing: Timing
    seeds: int


SEQ_LENS = (256, 1024, 4096, 16_384)
BUDGETS = {
    "quick": Budget(
        Learning(copying_steps=300, recall_steps=600, char_steps=800, binding_steps=300),
        Timing(SEQ_LENS, tokens=16_384, repeats=7, seconds=8.0, stream_tokens=100_000, stream_seconds=120.0),
        seeds=1,
    ),
    "full": Budget(
        Learning(
            copying_steps=2000, recall_steps=2000, char_steps=2500, binding_steps=1500, test_rows=256,
            binding_test_rows=2048, test_chars=262_144,
        ),
        Timing(SEQ_LENS, tokens=16_384, repeats=20, seconds=45.0, stream_tokens=100_000, stream_seconds=900.0),
        seeds=3,
    ),
}  # fmt: skip


class Surveyor:
    """Measures one candidate of a study after the other, and remembers what it has found of the baseline.

    Args:
        study: Whose trainings are done.
        budget: How much is measured.
        device: "cpu" or "cuda".
        tell: Hears what is being measured.
    """

    def __init__(self, study: Study, budget: Budget, device: str, tell: Tell) -> None:
        self.study, self.budget, self.device, self.tell = study, budget, device, tell
        self.baselines: list[tuple[Spec, Probed, Streamed]] = []

    def probe_and_stream(self, spec: Spec) -> tuple[Probed, Streamed]:
        """What can be seen of a configuration by itself, with random tokens and weights."""
        model = spec.build(VOCAB_SIZE, self.device)
        self.tell(f"measuring operations of {spec.model} ...")
        probed = probe(model, self.device)
        self.tell(f"measuring a stream of {spec.model} ...")
        timing = self.budget.timing
        return probed, read_stream(Stream(model, self.device), timing.stream_tokens, timing.stream_seconds)

    def of_baseline(self, spec: Spec) -> tuple[Probed, Streamed]:
        """The same of a baseline, remembered."""
        for known, probed, streamed in self.baselines:
            if known == spec:
                return probed, streamed
        self.baselines.append((spec, *self.probe_and_stream(spec)))
        return self.baselines[-1][1:]

    def measure(self, candidate: Spec) -> Measured:
        """Everything on one candidate."""
        reader = baseline(candidate, "char_text")
        probed_baseline, streamed_baseline = self.of_baseline(reader)
        probed, streamed = self.probe_and_stream(candidate)
        timing = self.budget.timing
        seq_lens = affordable(timing.seq_lens, probed, timing.tokens)
        model, other = (spec.build(VOCAB_SIZE, self.device) for spec in (candidate, reader))
        costs = measure_costs(model, other, seq_lens, timing, self.device, self.tell)
        return Measured(
            candidate, self.budget.learning, self.study, (probed, probed_baseline), costs, (streamed, streamed_baseline)
        )

    def card(self, candidate: Spec) -> Scorecard:
        """Measure a candidate, and judge it."""
        measured = self.measure(candidate)
        baselines = {task: asdict(baseline(candidate, task)) for task in (*TASKS, BINDING)}
        compared = [asdict(candidate), *baselines.values()]
        about = self.study.options | {
            "machine": about_machine(self.device),
            "candidate": asdict(candidate),
            "baselines": baselines,
            "trainings": [asdict(run) for run in self.study.runs() if run.labels["spec"] in compared],
            "probes": [asdict(probed) for probed in measured.probed],
            "streams": [asdict(streamed) for streamed in measured.streamed],
            "costs": asdict(measured.costs),
        }
        return Scorecard(candidate.model, findings(measured), relatives(candidate.model), about)
