"""What a scorecard measures: operations and pairs on toy mixers, streams on a made-up clock, the plan of trainings."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.__main__ import main
from app.benchmark.mixers import TRAINING
from app.scorecard import candidates, costs
from app.scorecard import operations as probes
from app.scorecard import training as learning
from app.scorecard.candidates import Spec
from app.scorecard.command import MODEL_OPTIONS, OPTIM_OPTIONS
from app.scorecard.requirements import OPERATIONS_A_DOUBLING
from app.scorecard.training import Learning
from models import Palm, PotatoLM, TokenFormer, TrajectoryLM, Transformer
from models.base import LanguageModel
from models.optim import Optim

RESULTS = Path(__file__).parents[3] / "results"
TUNED = ("optimizer", "learning_rate", "matrix_learning_rate", "embedding_learning_rate", "weight_decay", "schedule")

# Dispatched operations ------------------------------------------------------------------------------------------------


class Loop(torch.autograd.Function):
    """A loop over time where autograd does not see it."""

    @staticmethod
    def forward(ctx, x_BTD):
        return torch.stack([x_BD * 2 for x_BD in x_BTD.unbind(1)], 1)

    @staticmethod
    def backward(ctx, grad_BTD):
        return grad_BTD * 2


def doubling(x_BTD):
    """Sums over time by ever longer steps."""
    steps = 1
    while steps < x_BTD.size(1):
        x_BTD = x_BTD + F.pad(x_BTD, (0, 0, steps, 0))[:, : x_BTD.size(1)]
        steps *= 2
    return x_BTD


def padded_pairs(x_BTD):
    padded = F.pad(x_BTD, (0, 0, 0, -x_BTD.size(1) % 64))
    return (padded @ padded.mT @ padded)[:, : x_BTD.size(1)]


MIXERS = {
    "elementwise": lambda x: x.cumsum(1).relu(),
    "doubling": doubling,
    "loop": Loop.apply,
    "pairs": lambda x: (x @ x.mT).tril() @ x,
    "padded pairs": padded_pairs,
    "pairs by broadcast": lambda x: (x[:, :, None, 0] * x[:, None, :, 0]).sum(2, keepdim=True) + x,
    "fused attention": lambda x: F.scaled_dot_product_attention(*[x.unsqueeze(1)] * 3, is_causal=True).squeeze(1),
}


class Toy(LanguageModel):
    """A model of one mixer."""

    def __init__(self, mixer):
        layer = nn.Module()
        layer.forward = mixer
        super().__init__(128, 16, [layer], tie_embeddings=False, dropout=0.0, compile=False)


@pytest.fixture(scope="module")
def probed() -> dict[str, probes.Probed]:
    torch.manual_seed(0)
    lengths = (64, 256, 1024)
    return {name: probes.probe(Toy(mixer), "cpu", lengths, lengths) for name, mixer in MIXERS.items()}


def test_only_a_loop_over_time_needs_more_operations_for_more_time(probed):
    for name in ("elementwise", "pairs", "fused attention"):
        assert probed[name].operations_a_doubling == 0
    assert 0 < probed["doubling"].operations_a_doubling <= 8
    assert probed["loop"].operations_a_doubling == (1024 - 64) / 4  # one a step, over four doublings


@pytest.mark.parametrize("kind", [Palm, PotatoLM, TokenFormer, TrajectoryLM, Transformer])
def test_our_parallel_models_stay_below_the_bar(kind):
    model = kind(vocab_size=128, d_model=64, num_layers=1)
    assert probes.probe(model, "cpu", (64, 1024), (64, 1024)).operations_a_doubling <= OPERATIONS_A_DOUBLING


def test_pairs_of_positions_are_found_however_they_are_made(probed):
    innocent = {"elementwise", "doubling", "loop"}
    assert {name for name, seen in probed.items() if not seen.pairs} == innocent
    assert any(pair.startswith("bmm (1, 131, 131)") for pair in probed["pairs"].pairs)
    assert any("192, 192" in pair for pair in probed["padded pairs"].pairs)
    assert all("scaled_dot_product" in pair for pair in probed["fused attention"].pairs)


def test_the_largest_tensor_tells_its_exponent(probed):
    assert probed["elementwise"].tensor_exponent == pytest.approx(1)
    assert probed["elementwise"].largest == tuple(128 * T for T in (64, 256, 1024))  # the logits
    assert probed["pairs"].largest[-1] == 1024**2


def test_the_telling_length_is_no_size_of_the_model():
    model = Toy(MIXERS["elementwise"])
    assert probes.telling_length(model) == 131
    model.head = nn.Linear(16, 997)
    assert probes.telling_length(model) == 1009


def test_a_watch_counts_exactly():
    x = torch.ones(3, 4)
    watch = probes.watched(lambda: (x + 1).sum(), pair_length=3)
    assert (watch.operations, watch.largest, watch.pairs) == (2, 12, ["add.Tensor (3, 4)"])


# Candidates -----------------------------------------------------------------------------------------------------------


def candidate(name, *options, optim=()):
    """A candidate by options as they are typed."""
    model = replace(MODEL_OPTIONS, value=name, options=options)
    return candidates.candidate(name, model, replace(OPTIM_OPTIONS, options=optim), "help")


def record(spec, vocab_size):
    """What the record of a training says of its model."""
    model = spec.build(vocab_size)
    about = {"model": spec.model, "model_options": dict(model.hparams), "optim": asdict(spec.optim)}
    return about | {"parameters": model.num_parameters()}


def test_any_option_changes_the_fingerprint_but_not_the_vocabulary():
    spec = candidate("Transformer")
    first = candidates.fingerprint(record(spec, 5))
    assert candidates.fingerprint(record(spec, 6)) == first
    others = {
        "d_model": 64, "num_layers": 2, "num_heads": 4, "positions": "none", "rope_base": 10.0, "local_mixing": "shift",
        "ffn_ratio": 2, "norm": "layer", "tie_embeddings": True, "dropout": 0.5, "compile": True,
    }  # fmt: skip
    assert others.keys() == signature(Transformer).parameters.keys() - {"vocab_size"}
    changed = [replace(spec, options=spec.options | {name: value}) for name, value in others.items()]
    changed.append(replace(spec, optim=replace(spec.optim, beta2=0.9)))
    assert len({first, *(candidates.fingerprint(record(one, 5)) for one in changed)}) == len(changed) + 1


def test_a_candidate_has_one_layer_and_the_recipe_unless_told_otherwise():
    plain = candidate("PotatoLM")
    assert plain.options["num_layers"] == 1
    assert plain.optim == Optim(optimizer="muon", learning_rate=1e-2, weight_decay=0.0)
    options = ("--model.num_layers", "2", "--model.local_mixing=shift")
    told = candidate("PotatoLM", *options, optim=("--optim.learning_rate", "3e-3"))
    assert (told.options["num_layers"], told.options["local_mixing"]) == (2, "shift")
    assert told.optim == replace(plain.optim, learning_rate=3e-3)


def test_the_body_leaves_out_what_comes_with_the_vocabulary():
    spec = Spec("Transformer", {"d_model": 16, "num_heads": 2, "num_layers": 1}, Optim())
    bodies = {candidates.body_parameters(record(spec, vocab_size)) for vocab_size in (16, 32, 77)}
    assert bodies == {12 * 16**2}
    palm = candidate("Palm")  # whose ranks are 32, as copying's vocabulary
    assert len({candidates.body_parameters(record(palm, vocab_size)) for vocab_size in (32, 64, 128)}) == 1


def test_relatives_are_a_paragraph_of_the_module(monkeypatch):
    import models.palm

    assert candidates.relatives("Palm") == ""
    monkeypatch.setattr(models.palm, "__doc__", "Palm.\n\nNearest relatives: AFT,\nwhich has no detail.\n\nShapes: B.")
    assert candidates.relatives("Palm") == "Nearest relatives: AFT, which has no detail."


# Costs ----------------------------------------------------------------------------------------------------------------


def test_exponents_are_of_the_least_times_of_each():
    samples = {T: {"ours": [T**0.1, 9.0 * T], "theirs": [1e9, T**0.8]} for T in (1024, 4096, 16_384)}
    assert costs.exponents(TRAINING, samples) == pytest.approx((1.1, 1.8))  # of a sequence; the samples are a token's
    assert costs.exponents(TRAINING, {1024: samples[1024]}) == (None, None)


def test_lengths_that_would_not_fit_into_memory_are_left_out():
    lengths = (256, 1024, 4096, 16_384)
    linear = probes.Probed((64, 4096), (1, 1), (1024, 4096), (2**19, 2**21), 131, ())
    quadratic = probes.Probed((64, 4096), (1, 1), (1024, 4096), (2**23, 2**27), 131, ())
    assert costs.affordable(lengths, linear, 16_384) == lengths
    assert costs.affordable(lengths, quadratic, 16_384) == lengths[:3]


class FakeStream:
    """A stream on a clock of its own: what a token takes and the state holds are functions of the position."""

    def __init__(self, seconds, state_bytes):
        self.seconds, self.state_bytes = seconds, state_bytes
        self.position, self.now, self.model, self.state = 0, 0.0, self, []

    def read(self, count):
        self.now += sum(self.seconds(position) for position in range(self.position, self.position + count))
        self.position += count
        self.state = [torch.empty(self.state_bytes(self.position), dtype=torch.int8), (self.position,)]

    def run(self, seconds=math.inf):
        self.state_bytes = self.state_bytes if callable(self.state_bytes) else lambda position: 8
        return costs.read_stream(self, 1000, seconds, clock=lambda: self.now)


def test_a_constant_stream_is_read_to_its_end():
    assert FakeStream(lambda position: 2.0, lambda position: 8).run() == costs.Streamed(1000, 1000, 1.0, (8, 8))


def test_a_stream_ends_when_its_state_has_grown_beyond_the_first_tenth():
    streamed = FakeStream(lambda position: 1.0 + position // 100, lambda position: 8 if position < 250 else 16).run()
    assert streamed == costs.Streamed(300, 1000, 3.0, (8, 16))


def test_a_slow_stream_is_broken_off_and_says_how_far_it_came():
    streamed = FakeStream(lambda position: 1.0, lambda position: 8).run(seconds=455.0)
    assert (streamed.tokens, streamed.slowdown) == (460, 1.0)
    assert FakeStream(lambda position: 1.0, lambda position: 8).run(seconds=0).slowdown is None


def test_what_the_model_claims_of_its_state_counts_too():
    stream = FakeStream(lambda position: 1.0, lambda position: 8)
    stream.state = object()
    assert costs.state_size(stream) == 8


# Trainings ------------------------------------------------------------------------------------------------------------


QUICK = Learning(3, 2, 4, 1, seq_len=8)
PALM = candidates.Spec("Palm", {"d_model": 32, "num_layers": 1}, Optim(learning_rate=0.1))


def plan(*specs, tasks=learning.TASKS, seeds=(1,), **changes):
    lessons = learning.lessons(replace(QUICK, **changes), "some.txt", "data")
    return learning.trainings(specs, tasks, lessons, seeds, "cpu")


def test_each_training_is_planned_once_the_longest_first():
    runs = plan(PALM, replace(PALM, model="TokenFormer"))
    assert len({run.name for run in runs}) == len(runs) == 12
    steps = [next(option for option in run.options if "max_steps" in option) for run in runs]
    assert steps == sorted(steps, reverse=True)
    told = Counter((run.labels["spec"]["model"], run.labels["spec"]["options"]["num_layers"]) for run in runs)
    assert told == {("Palm", 1): 4, ("TokenFormer", 1): 4, ("Transformer", 1): 4}
    assert {run.labels["task"] for run in plan(PALM, tasks=("copying",))} == {"copying", "binding"}
    assert len(plan(PALM, seeds=(3, 4))) == 16


def test_a_candidate_that_is_the_baseline_is_trained_once():
    options = ("positions=none", "local_mixing=conv", "tie_embeddings=true", "d_model=16", "num_heads=1")
    same = candidate("Transformer", *(f"--model.{option}" for option in options))
    assert same == candidates.baseline(same, "recall") == candidates.baseline(same, "binding")
    assert same not in (candidates.baseline(same, "char_text"), candidates.baseline(same, "copying"))
    assert len(plan(same)) == 6  # its baselines that copy and read are others


SEARCHES = {"copying": "searched_copying", "recall": "searched_recall", "char_text": "searched_stdlib"}


@pytest.mark.parametrize("task", SEARCHES)
def test_the_baseline_is_what_the_search_chose(task):
    baseline = candidates.baseline(candidate("Palm", "--model.d_model=64"), task)
    options = {"positions": "rotary", "tie_embeddings": False, "rope_base": 1e4} | baseline.options
    runs = json.loads((RESULTS / f"{SEARCHES[task]}.json").read_text())["runs"]
    chosen = [run["record"] for run in runs if run["name"].endswith("-s1") and run["labels"]["model"] == "Transformer"]
    assert chosen
    for record in chosen:
        assert {name: record["model_options"][name] for name in options} == options
        assert {name: record["optim"][name] for name in TUNED} == {
            name: getattr(baseline.optim, name) for name in TUNED
        }


def test_the_name_of_a_training_says_all_of_its_options():
    changes = [
        {}, {"copying_steps": 9}, {"copying_rows": 9}, {"test_rows": 9}, {"seeds": (2,)}, {"char_steps": 9},
    ]  # fmt: skip
    specs = [PALM, replace(PALM, options=PALM.options | {"rank": 3}), replace(PALM, optim=Optim())]
    plans = [plan(PALM, **change) for change in changes] + [plan(spec) for spec in specs]
    names = [next(run.name for run in runs if run.name.startswith("copying-Palm-")) for runs in plans]
    assert len(set(names)) == len(names) - 2  # of char_steps copying knows nothing


def test_fit_understands_the_options_of_all_trainings(capsys, tiny_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lessons = learning.lessons(QUICK, str(tiny_text), "data")
    for run in learning.trainings([PALM], learning.TASKS, lessons, (7,), "cpu"):
        if run.labels["spec"]["model"] == "Palm":
            with pytest.raises(SystemExit, match="0"):
                main(["fit", *run.options, "--print_config"])
            out = capsys.readouterr().out
            for line in ("d_model: 32", "learning_rate: 0.1", "seed_everything: 7", "accelerator: cpu"):
                assert line in out
    assert not list(tmp_path.iterdir())


def test_results_are_read_from_records_and_what_diverged_has_none():
    record = {"test": {"test/accuracy": 0.5, "test/loss": None}}
    assert learning.result(record, "accuracy") == 0.5
    assert math.isnan(learning.result(record, "loss"))
    assert math.isnan(learning.result({"status": "failed: the loss is not finite"}, "accuracy"))
    with pytest.raises(KeyError):
        learning.result(record, "acuracy")
