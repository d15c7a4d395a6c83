"""What a scorecard measures: operations and pairs on toy mixers, binding on oracles, streams on a made-up clock."""

import math
import multiprocessing
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.benchmark.mixers import TRAINING
from app.cli.groups import OptionGroup
from app.scorecard import binding, candidates, costs
from app.scorecard import operations as probes
from app.scorecard import training as learning
from app.scorecard.training import Job, Learning
from models.base import LanguageModel
from models.metrics import IGNORED
from models.optim import Optim

TINY = Learning(2, 2, 2, 2, copying_rows=2, recall_rows=1, char_rows=2, binding_rows=4, seq_len=8, test_rows=1, test_chars=1000)  # fmt: skip  # noqa: E501


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


def test_any_option_changes_the_fingerprint_but_not_the_vocabulary():
    spec = candidates.candidate("Transformer", OptionGroup("Transformer"), OptionGroup(), "help")
    first = candidates.fingerprint(spec.build(5))
    assert candidates.fingerprint(spec.build(6)) == first
    others = {
        "d_model": 64, "num_layers": 2, "num_heads": 4, "rope_base": 10.0, "ffn_ratio": 2, "token_shift": True,
        "tie_embeddings": True, "dropout": 0.5, "compile": True,
    }  # fmt: skip
    assert others.keys() == spec.options.keys()
    changed = [replace(spec, options=spec.options | {name: value}) for name, value in others.items()]
    changed.append(replace(spec, optim=replace(spec.optim, beta2=0.9)))
    assert len({first, *(candidates.fingerprint(one.build(5)) for one in changed)}) == len(changed) + 1


def test_a_candidate_has_one_layer_and_the_recipe_unless_told_otherwise():
    plain = candidates.candidate("PotatoLM", OptionGroup("PotatoLM"), OptionGroup(), "help")
    assert plain.options["num_layers"] == 1
    assert plain.optim == Optim(optimizer="muon", learning_rate=1e-2, weight_decay=0.0)
    model = OptionGroup("PotatoLM", ("--model.num_layers", "2", "--model.token_shift=true"))
    told = candidates.candidate("PotatoLM", model, OptionGroup(None, ("--optim.learning_rate", "3e-3")), "help")
    assert (told.options["num_layers"], told.options["token_shift"]) == (2, True)
    assert told.optim == replace(plain.optim, learning_rate=3e-3)


def test_the_body_leaves_out_what_comes_with_the_vocabulary():
    spec = candidates.baseline(16)
    assert {candidates.body_parameters(spec, vocab_size) for vocab_size in (16, 32, 77)} == {12 * 16**2 + 16}
    palm = candidates.candidate(
        "Palm", OptionGroup("Palm"), OptionGroup(), "help"
    )  # whose ranks are 32, as copying's vocabulary
    assert len({candidates.body_parameters(palm, vocab_size) for vocab_size in (32, 64, 128)}) == 1


def test_relatives_are_a_paragraph_of_the_module(monkeypatch):
    import models.palm

    assert candidates.relatives("Palm") == ""
    monkeypatch.setattr(models.palm, "__doc__", "Palm.\n\nNearest relatives: AFT,\nwhich has no detail.\n\nShapes: B.")
    assert candidates.relatives("Palm") == "Nearest relatives: AFT, which has no detail."


# Binding --------------------------------------------------------------------------------------------------------------


def look_up(inputs_T, at, like):
    """The value of the first stored entry whose key is `like` the tokens asked with at position `at`."""
    asked = inputs_T[at - 1 : at + 1]
    entries = inputs_T[:12].view(4, 3)
    return next(int(entry[2]) for entry in entries if like(entry[:2].tolist(), asked.tolist()))


class Oracle:
    """A model that answers by a rule."""

    def __init__(self, like):
        self.like = like

    def eval(self):
        return self

    def __call__(self, inputs_BT):
        logits_BTV = torch.zeros(*inputs_BT.shape, binding.VOCAB_SIZE)
        for row, inputs_T in enumerate(inputs_BT):
            for at in (13, 16, 19, 22):
                logits_BTV[row, at, look_up(inputs_T, at, self.like)] = 1
        return logits_BTV


def test_each_key_asks_for_its_own_value_and_no_answer_is_read():
    (inputs_BT, targets_BT), value_BN, at_B = binding.binding_batch(50, torch.Generator().manual_seed(1))
    assert inputs_BT.shape == targets_BT.shape == (50, 24)
    assert ((targets_BT != IGNORED).sum(1) == 4).all()
    assert (inputs_BT[:, [14, 17, 20, 23]] == binding.BLANK).all()
    for row in range(50):
        for at in (13, 16, 19, 22):
            assert targets_BT[row, at] == look_up(inputs_BT[row], at, lambda key, asked: key == asked)
        assert targets_BT[row, at_B[row]] == value_BN[row, binding.ASKED]
        keys = {tuple(key) for key in inputs_BT[row, :12].view(4, 3)[:, :2].tolist()}
        a, b = inputs_BT[row, at_B[row] - 1 : at_B[row] + 1].tolist()
        assert len(keys) == 4
        assert (b, a) in keys


@pytest.mark.parametrize(
    ("like", "share"),
    [
        (lambda key, asked: key == asked, {"own": 1}),
        (lambda key, asked: key[1] == asked[1], {"own": 0.5, "last": 0.5}),
        (lambda key, asked: key[0] == asked[0], {"own": 0.5, "first": 0.5}),
        (lambda key, asked: sorted(key) == sorted(asked), {"own": 0.5, "swapped": 0.5}),
    ],
)
def test_a_shortcut_binds_half_of_the_keys_at_most(like, share):
    found = binding.BindingTask(1, 8).confusion(Oracle(like), 400, "cpu")
    assert sum(found.values()) == 1
    assert {name for name, part in found.items() if part} == set(share)
    assert found == pytest.approx({"own": 0, "swapped": 0, "first": 0, "last": 0} | share, abs=0.1)


def test_batches_of_binding_are_a_function_of_seed_and_number():
    def first_two(seed):
        batches = binding.BindingTask(seed, 3).train_batches()
        return [next(batches)[0].tolist() for _ in range(2)]

    assert first_two(1) == first_two(1)
    assert len({str(batch) for seed in (1, 2) for batch in first_two(seed)}) == 4


def test_recall_turned_round_asks_with_the_value():
    inputs, targets = torch.tensor([[1, 9, 2, 8, 2, 5]]), torch.full((1, 6), IGNORED)
    targets[0, 4] = 8
    turned_inputs, turned_targets = binding.asked_by_value((inputs, targets))
    assert turned_inputs.tolist() == [[1, 9, 2, 8, 8, 5]]
    assert turned_targets.tolist() == [[IGNORED, IGNORED, IGNORED, IGNORED, 2, IGNORED]]


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


def job(task, **changes):
    spec = candidates.candidate(
        "Palm", OptionGroup("Palm", ("--model.d_model=16", "--model.num_heads=2")), OptionGroup(), "help"
    )
    return replace(Job(spec, task, 1, TINY, "no such text", "data"), **changes)


def test_longer_windows_are_scored_on_the_same_characters(tiny_text, monkeypatch):
    seen = []

    def collect(model, batches, max_scored):
        targets, count = [], 0
        for _, targets_BT in batches:
            targets += targets_BT[targets_BT != IGNORED].tolist()
            if len(targets) >= max_scored:
                break
        seen.append(targets)
        return float(count), 0.0

    monkeypatch.setattr(learning, "tally", collect)
    data = learning.text_data(str(tiny_text), "data", replace(TINY, seq_len=4, test_chars=300))
    assert list(learning.measure_text(None, data, replace(TINY, test_chars=300))) == [
        f"bits/{T}" for T in (4, 16, 64, 256)
    ]
    assert len(seen[0]) == 512  # so many that the longest windows are whole
    assert seen[1:] == seen[:1] * 3


def test_a_tally_is_of_scored_positions_alone():
    model = Toy(lambda x: x)
    nn.init.zeros_(model.head.weight)
    targets = torch.full((2, 3), IGNORED)
    targets[0, 1], targets[1, 2] = 0, 5  # equal logits are answered with 0
    batches = [(torch.zeros(2, 3, dtype=torch.int64), targets)] * 3
    assert learning.tally(model, batches) == pytest.approx((7, 0.5))
    assert learning.tally(model, iter(batches), max_scored=3) == pytest.approx((7, 0.5))


def test_jobs_are_each_run_once_the_longest_first():
    jobs = [job("copying"), job("recall", learning=replace(TINY, recall_steps=9)), job("copying"), job("binding")]
    assert [one.task for one in learning.longest_first(jobs)] == ["recall", "copying", "binding"]


def same(trained):
    return replace(trained, seconds=0.0)


def test_a_job_is_a_function_of_what_it_holds(tiny_text):
    text = job("char_text", corpus=str(tiny_text))
    first, again = (learning.run_job(text) for _ in range(2))
    assert same(first) == same(again)
    assert first.tokens == 2 * 2 * 8
    other = learning.run_job(replace(text, seed=2))
    assert other.values != first.values
    assert other.fingerprint == first.fingerprint == learning.run_job(job("binding")).fingerprint


def test_processes_do_the_same_and_end_when_interrupted():
    jobs = [job("binding", seed=seed) for seed in range(3)]
    found = []

    def interrupt(*done):
        found.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learning.run_jobs(jobs, 2, interrupt)
    assert not multiprocessing.active_children()
    ((done, trained),) = found
    torch.rand(3)  # whatever the random state is
    assert same(trained) == same(learning.run_job(done))
