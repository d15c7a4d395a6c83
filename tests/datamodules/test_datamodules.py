"""Synthetic tasks and the loader: naive references, who draws a sample does not matter, resuming loses nothing."""

import hashlib
import pickle
from collections import Counter
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from datamodules import AssociativeRecall, Binding, CharText, Copying, StreamLoader, TaskData
from datamodules.base import IGNORED, SampleStream
from datamodules.binding import binding_batch
from datamodules.copying import BLANK, BOS, SEP, copying_batch
from datamodules.randomness import (
    first_distinct,
    mix,
    random_bits,
    random_floats,
    random_integers,
    random_mask,
    stream_key,
)
from datamodules.recall_batches import Recall, query_gaps, recall_batch

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
VARIANTS = ("standard", "noisy", "fuzzy", "forgetting")


# Randomness -----------------------------------------------------------------------------------------------------------


def naive_mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def test_mix_gives_the_published_splitmix64_sequence():
    counters = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(GAMMA)
    expected = (
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    )
    assert tuple(map(int, mix(counters))) == expected


@given(key=st.integers(0, MASK), indices=st.lists(st.integers(0, 2**62), min_size=1, max_size=4), num=st.integers(0, 5))
def test_random_bits_are_their_formula(key, indices, num):
    bits = random_bits(key, np.array(indices), num)
    for row, index in zip(bits, indices, strict=True):
        start = naive_mix((key + index * GAMMA) & MASK)
        assert [int(b) for b in row] == [naive_mix((start + (m + 1) * GAMMA) & MASK) for m in range(num)]


def test_integers_and_floats_are_uniform():
    bits = random_bits(stream_key("uniform"), np.arange(200), 500)
    counts = np.bincount(random_integers(bits, 10).ravel(), minlength=10)
    assert len(counts) == 10
    assert abs(counts - 10_000).max() < 500  # five standard deviations
    floats = random_floats(bits)
    assert 0 < floats.min() < 1e-3
    assert 0.999 < floats.max() < 1
    assert abs(floats.mean() - 0.5) < 5e-3
    extreme = np.array([0, MASK], dtype=np.uint64)
    assert random_integers(extreme, 7).tolist() == [0, 6]
    assert 0 < random_floats(extreme)[0] < random_floats(extreme)[1] < 1


def test_streams_differ():
    keys = {stream_key(*parts) for parts in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ("a", 0), (-1, "a")]}
    assert len(keys) == 6


def test_random_mask_marks_each_place_equally_often():
    mask = random_mask(random_bits(1, np.arange(5000), 8), 3)
    assert (mask.sum(1) == 3).all()
    assert abs(mask.mean(0) - 3 / 8).max() < 0.04


@given(population=st.integers(1, 40), data=st.data())
def test_first_distinct_is_drawing_without_replacement(population, data):
    num = data.draw(st.integers(1, population))
    drawn = first_distinct(lambda m: random_integers(random_bits(7, np.arange(3), m), population), num)
    for row, longer in zip(drawn, random_integers(random_bits(7, np.arange(3), 4000), population), strict=True):
        assert row.tolist() == list(dict.fromkeys(longer.tolist()))[:num]


# Copying --------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 20), blanks=st.none() | st.integers(0, 10), index=st.integers(0, 10**9))
def test_copying_against_its_definition(length, blanks, index):
    inputs, targets = copying_batch(0, "test", np.array([index]), length, vocab_size=9, num_blanks=blanks)
    inputs, targets = inputs[0].tolist(), targets[0].tolist()
    row = [*inputs, targets[-1]]
    shown, copy = row[1 : 1 + length + (blanks or 0)], row[-length:]
    assert row == [BOS, *shown, SEP, *copy]
    assert copy == (shown if blanks is None else [token for token in shown if token != BLANK])
    assert all((2 if blanks is None else 3) <= token < 9 for token in copy)
    assert targets == [IGNORED] * (len(shown) + 1) + copy


@pytest.mark.parametrize("blanks", [None, 4])
def test_without_feedback_the_answer_is_read_nowhere(blanks):
    given = np.arange(3), 5
    inputs, targets = copying_batch(0, "test", *given, vocab_size=9, num_blanks=blanks, feedback=False)
    fed_back, same_targets = copying_batch(0, "test", *given, vocab_size=9, num_blanks=blanks)
    question = 5 + (blanks or 0) + 1
    assert torch.equal(targets, same_targets)
    assert torch.equal(inputs[:, :question], fed_back[:, :question])
    assert (inputs[:, question:] == SEP).all()
    assert (fed_back[:, question + 1 :] == targets[:, question:-1]).all()


def test_each_batch_has_its_number_of_blanks():
    task = Copying(selective=True, min_blanks=2, num_blanks=9, max_length=8, batch_size=2)
    stream = task.train_stream()
    blanks = [int((stream.read(0, 1, number)[0][0] == BLANK).sum()) for number in range(100)]
    assert set(blanks) == set(range(2, 10))
    tested = next(iter(Copying(selective=True, min_blanks=2, num_blanks=9, batch_size=2).test_dataloader()[0]))[0]
    assert ((tested == BLANK).sum(1) == 9).all()


def test_copying_uses_the_whole_alphabet():
    inputs, _ = copying_batch(0, "train", np.arange(200), 20, vocab_size=8)
    assert set(inputs.flatten().tolist()) == set(range(8))


def test_training_lengths_cover_the_range_and_hold_for_a_batch():
    stream = Copying(min_length=3, max_length=6, batch_size=2).train_stream()
    lengths = Counter((stream.read(0, 1, number)[0].size(1) - 1) // 2 for number in range(100))
    assert set(lengths) == {3, 4, 5, 6}


# Associative recall ---------------------------------------------------------------------------------------------------


def runs(tokens, is_key):
    """Split into maximal runs of keys followed by what is no key: the words that a reader sees."""
    words, start = [], 0
    for t in range(1, len(tokens) + 1):
        if t == len(tokens) or (is_key(tokens[t]) and not is_key(tokens[t - 1])):
            words.append(tokens[start:t])
            start = t
    return words


def read_context(tokens, recall, context_len):
    """Key -> value as a careful reader would note them down, and the order of the pairs."""
    V, noted, order = recall.vocab_size, {}, []
    context = [token for token in tokens[:context_len] if token < recall.first_noise]
    for word in runs(context, lambda token: 1 <= token < V // 2):
        key = tuple(token for token in word if 1 <= token < V // 2)
        noted[key] = tuple(token for token in word if V // 2 <= token < recall.first_noise)
        order.append(key)
    return noted, order


@pytest.mark.parametrize("random_non_queries", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_query_is_answered_by_its_value(variant, random_non_queries):
    V, N, T = (40 if variant == "fuzzy" else 64), 6, 96
    recall = Recall(V, 0.3, random_non_queries, variant, num_noise_tokens=5)
    inputs, targets = recall_batch(3, "test", np.arange(40), T, N, recall)
    for tokens, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
        # Fuzzy contexts are shorter than the room kept for them; random fillers after them look like a value's end.
        noted, order = read_context(tokens, recall, recall.context_len(N))
        scored = [t for t in range(T) if labels[t] != IGNORED]
        queried = []
        for t in scored:
            if t - 1 in scored and labels[t - 1] == tokens[t]:
                continue  # the next token of the same answer
            start = t
            while start > 0 and 1 <= tokens[start - 1] < V // 2 and variant == "fuzzy":
                start -= 1
            key = tuple(tokens[start : t + 1])
            end = t + 1
            while end in scored and labels[end - 1] == tokens[end]:
                end += 1
            answer = tuple(labels[t:end])
            queried.append(key)
            assert noted[key][: len(answer)] == answer
            if not (variant == "fuzzy" and random_non_queries and key == order[-1]):
                assert noted[key] == answer
        assert sorted(queried) == sorted(noted)  # each key once
        assert len(noted) == N
        if variant == "standard":
            assert len(set(noted.values())) == N
            assert min(scored) >= 2 * N
            assert all((t - 2 * N) % 2 == 0 for t in scored)


def test_the_published_layout_of_fillers():
    inputs, targets = recall_batch(0, "test", np.arange(300), 64, 4, Recall(8192, 0.01, False))
    assert ((inputs[:, 8:] == 0) == (targets[:, 8:] == IGNORED)).all()
    with_noise, same_targets = recall_batch(0, "test", np.arange(300), 64, 4, Recall(8192, 0.01, True))
    assert torch.equal(targets, same_targets)
    fillers = with_noise[inputs == 0]
    assert torch.equal(with_noise[inputs != 0], inputs[inputs != 0])
    assert fillers.min() < 100
    assert fillers.max() > 8092


def test_noise_and_forgetting_do_what_they_say():
    noisy = Recall(64, variant="noisy", noise_fraction=0.5, num_noise_tokens=4, random_non_queries=False)
    inputs, _ = recall_batch(0, "test", np.arange(50), 64, 5, noisy)
    assert ((inputs >= 60).sum(1) == 10).all()
    assert (inputs >= 60)[:, :20].float().mean(0).max() < 0.9  # not always at the same places
    forgetting = Recall(64, variant="forgetting", reassigned_fraction=0.5, random_non_queries=False)
    inputs, _ = recall_batch(0, "test", np.arange(50), 64, 6, forgetting)
    for row in inputs[:, : forgetting.context_len(6)].tolist():
        assert sorted(Counter(row[::2]).values()) == [1, 1, 1, 2, 2, 2]
        assert len(set(row[1::2])) == 9


@pytest.mark.parametrize("power_a", [0.01, 1.0])
def test_gaps_are_drawn_like_numpy_draws_without_replacement(power_a):
    slots, num, rows = 12, 4, 4000
    gaps = query_gaps(5, np.arange(rows), slots, num, power_a)
    p = np.arange(1, slots + 1) ** (power_a - 1.0)
    p /= p.sum()
    generator = np.random.default_rng(0)
    expected = np.array([generator.choice(slots, num, replace=False, p=p) for _ in range(rows)])
    for draw in range(num):  # the marginal of the first, second, ... key's gap
        counts, reference = (np.bincount(g[:, draw], minlength=slots) / rows for g in (gaps, expected))
        assert abs(counts - reference).max() < 0.05
    assert abs(np.bincount(gaps[:, 0], minlength=slots) / rows - p).max() < 0.03


def test_training_sizes_cover_the_mixture():
    stream = AssociativeRecall(train_mixture=((16, 2), (24, 3)), batch_size=3).train_stream()
    seen = Counter()
    for number in range(40):
        inputs, targets = stream.read(0, 1, number)
        (num_pairs,) = set((targets != IGNORED).sum(1).tolist())
        seen[inputs.size(1), num_pairs] += 1
    assert set(seen) == {(16, 2), (24, 3)}


def test_recall_is_asked_by_value_too_and_the_headline_is_of_keys_alone():
    task = AssociativeRecall(test_slices=((16, 2), (24, 3)), test_by_value=((24, 3),), num_test_samples=5)
    assert task.slice_names("test") == ["16x2", "24x3", "24x3-by-value"]
    assert task.headline("test") == ["16x2", "24x3"]
    assert task.slice_names("validate") == task.headline("validate")
    _, by_key, by_value = task.eval_streams("test")
    (inputs, targets), (turned_inputs, turned_targets) = by_key.read(0, 1, 0), by_value.read(0, 1, 0)
    queried = targets != IGNORED
    assert torch.equal(turned_inputs[queried], targets[queried])
    assert torch.equal(turned_targets[queried], inputs[queried])
    assert torch.equal(turned_inputs[~queried], inputs[~queried])
    assert (turned_targets[~queried] == IGNORED).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_by_value": ((16, 9),)}, "--data.test_by_value \\[16, 9\\]"),
        ({"test_by_value": ()}, "--data.test_by_value is empty"),
        ({"test_by_value": ((64, 4),), "variant": "fuzzy"}, "--data.test_by_value .* --data.variant fuzzy"),
    ],
)
def test_recall_by_value_is_checked(options, words):
    with pytest.raises(ValueError, match=words):
        AssociativeRecall(**options)


# Binding --------------------------------------------------------------------------------------------------------------

SHORTCUTS = {  # which stored key each takes for the one asked, and whose value "a b" is answered with, how often
    "none": (lambda key, asked: key == asked, {"own": 1}),
    "last token": (lambda key, asked: key[1] == asked[1], {"own": 0.5, "last": 0.5}),
    "first token": (lambda key, asked: key[0] == asked[0], {"own": 0.5, "first": 0.5}),
    "no order": (lambda key, asked: sorted(key) == sorted(asked), {"own": 0.5, "swapped": 0.5}),
}


def look_up(tokens, at, is_like):
    """The value of the first stored entry whose key is like the tokens that end at `at`."""
    stored = [tokens[start : start + 3] for start in range(0, 12, 3)]
    return next(value for *key, value in stored if is_like(key, tokens[at - 1 : at + 1]))


def test_each_key_asks_for_its_own_value_and_no_answer_is_read():
    inputs, targets = BINDING(indices_B=np.arange(50))
    assert inputs.shape == targets.shape == (50, 24)
    for tokens, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
        scored = [at for at in range(24) if labels[at] != IGNORED]
        assert scored == [13, 16, 19, 22]
        assert [tokens[at + 1] for at in scored] == [0] * 4
        assert [labels[at] for at in scored] == [look_up(tokens, at, SHORTCUTS["none"][0]) for at in scored]
        assert len(set(tokens[2:12:3])) == len({tuple(tokens[start : start + 2]) for start in range(0, 12, 3)}) == 4
        assert all(32 <= token < 64 for token in tokens[2:12:3])
        assert all(1 <= token < 32 for at in scored for token in tokens[at - 1 : at + 1])


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_the_test_tells_by_which_shortcut_a_model_binds(shortcut):
    is_like, expected = SHORTCUTS[shortcut]
    task = Binding(num_test_samples=400)
    shares = {}
    for loader in task.test_dataloader():
        right = [
            labels[at] == look_up(tokens, at, is_like)
            for tokens, labels in rows_of(loader)
            for at in range(24)
            if labels[at] != IGNORED
        ]
        assert len(right) == 400
        shares[task.slice_names("test")[len(shares)]] = sum(right) / 400
    assert sum(shares.values()) == 1
    assert shares == pytest.approx({"own": 0, "swapped": 0, "first": 0, "last": 0} | expected, abs=0.1)
    assert task.headline("test") == ["own"]


def test_binding_needs_four_tokens_for_its_keys():
    with pytest.raises(ValueError, match="--data.vocab_size is 9; it must be at least 10"):
        Binding(vocab_size=9)
    assert Binding(vocab_size=10).train_stream().read(0, 1, 0)[0].max() < 10


# Who draws a sample does not matter -----------------------------------------------------------------------------------


COPYING_AND_RECALL = [
    partial(copying_batch, 1, "test", length=6, vocab_size=9),
    partial(copying_batch, 1, "test", length=6, vocab_size=9, num_blanks=5),
    *(partial(recall_batch, 1, "test", seq_len=80, num_pairs=6, recall=Recall(64, variant=v)) for v in VARIANTS),
]
WITHOUT_FEEDBACK = partial(copying_batch, 1, "test", length=6, vocab_size=9, num_blanks=5, feedback=False)
BINDING = partial(binding_batch, 1, "test")
GENERATORS = [*COPYING_AND_RECALL, WITHOUT_FEEDBACK, BINDING]


@pytest.mark.parametrize("generate", GENERATORS)
@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_a_sample_is_a_function_of_its_index(generate, indices):
    together = generate(indices_B=np.array(indices))
    for row, index in enumerate(indices):
        alone = generate(indices_B=np.array([index]))
        assert torch.equal(alone[0][0], together[0][row])
        assert torch.equal(alone[1][0], together[1][row])


@pytest.mark.parametrize("generate", GENERATORS)
def test_samples_splits_and_seeds_differ(generate):
    inputs, _ = generate(indices_B=np.arange(50))
    assert len({tuple(row) for row in inputs.tolist()}) == 50
    for change in ({"seed": 2}, {"split": "train"}):
        seed, split = {"seed": 1, "split": "test", **change}.values()
        other = generate.func(seed, split, np.arange(50), **generate.keywords)
        assert not torch.equal(inputs, other[0])


@pytest.mark.parametrize(
    ("generators", "digits"),
    [
        (COPYING_AND_RECALL, "ce97a2d2029b15b6"),
        ([WITHOUT_FEEDBACK], "800a3638a3364850"),
        ([BINDING], "c9b640ddc643edf5"),
    ],
)
def test_the_data_have_not_changed(generators, digits):
    """Published numbers stand on these very samples: a change of these sums is a change of every task."""
    digest = hashlib.sha256()
    for generate in generators:
        for tensor in generate(indices_B=np.arange(5)):
            digest.update(tensor.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == digits


def rows_of(batches):
    return [row for inputs, targets in batches for row in zip(inputs.tolist(), targets.tolist(), strict=True)]


@given(num_samples=st.integers(1, 30), batch_size=st.integers(1, 8), world_size=st.integers(1, 5))
def test_evaluation_reads_the_split_once_and_ranks_stay_in_step(num_samples, batch_size, world_size):
    def identity(number, indices_B):
        return torch.from_numpy(indices_B)[:, None].clone(), torch.from_numpy(indices_B)[:, None].clone()

    stream = SampleStream("all", identity, num_samples, batch_size)
    scored = []
    for number in range(len(stream)):
        parts = [stream.read(rank, world_size, number) for rank in range(world_size)]
        assert len({part[0].shape for part in parts}) == 1
        scored += [index for _, targets in parts for index in targets.flatten().tolist() if index != IGNORED]
    assert scored == list(range(num_samples))


@given(world_size=st.sampled_from([1, 2, 3, 6]), number=st.integers(0, 1000))
def test_ranks_together_read_the_training_batch_of_one_process(world_size, number):
    for task in (
        Copying(batch_size=6, max_length=12),
        AssociativeRecall(batch_size=6, train_mixture=((16, 2), (24, 3))),
        Binding(batch_size=6),
    ):
        stream = task.train_stream()
        parts = [stream.read(rank, world_size, number) for rank in range(world_size)]
        assert rows_of(parts) == rows_of([stream.read(0, 1, number)])


def test_processes_come_from_the_trainer():
    task = Copying(batch_size=6, val_lengths=(8,), num_val_samples=5)
    alone = rows_of([next(iter(task.train_dataloader()))])
    parts = []
    for rank in range(3):
        kwargs = {"num_replicas": 3, "rank": rank}
        task.trainer = SimpleNamespace(
            distributed_sampler_kwargs=kwargs,
            overfit_batches=0,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            fit_loop=SimpleNamespace(
                epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
            ),
        )
        parts.append(next(iter(task.train_dataloader())))
        assert [len(loader) for loader in task.val_dataloader()] == [1]
    assert rows_of(parts) == alone
    task.batch_size = 8
    with pytest.raises(ValueError, match="--data.batch_size 8 does not split over 3 processes"):
        task.train_dataloader()


def test_long_sequences_come_in_small_evaluation_batches():
    task = Copying(batch_size=32, max_length=64)
    sizes = {stream.name: stream.batch_size for stream in task.eval_streams("test")}
    assert sizes == {"64": 32, "128": 16, "256": 8, "512": 4, "1024": 2}


# The loader and the trainer -------------------------------------------------------------------------------------------


def count(number):
    return torch.tensor([[number]]), torch.tensor([[number]])


def numbers(batches):
    return [int(inputs[0, 0]) for inputs, _ in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_loader_goes_on_and_an_evaluation_loader_begins_again(num_workers):
    training = StreamLoader(count, 3, endless=True, num_workers=num_workers)
    assert numbers(training) == [0, 1, 2]
    iterator = iter(training)
    assert numbers([next(iterator), next(iterator)]) == [3, 4]
    state = training.state_dict()
    assert state == {"batches": 5}  # whatever workers prefetched
    resumed = StreamLoader(count, 3, endless=True)
    resumed.load_state_dict(state)
    assert numbers(resumed) == [5, 6, 7]
    evaluation = StreamLoader(count, 2, num_workers=num_workers)
    assert numbers(evaluation) == numbers(evaluation) == [0, 1]


def test_streams_travel_to_worker_processes():
    for task in (Copying(), AssociativeRecall(test_by_value=((64, 4),)), Binding()):
        for stream in (task.train_stream(), *task.eval_streams("test")):
            copy = pickle.loads(pickle.dumps(stream))
            assert rows_of([copy.read(0, 1, 1)]) == rows_of([stream.read(0, 1, 1)])


class Counting(TaskData):
    """Ten samples an epoch in batches of two, each its own index."""

    def __init__(self, num_workers=0):
        super().__init__(batch_size=2, num_workers=num_workers, seed=0)

    def train_stream(self):
        return SampleStream("train", self.generate, 10, self.batch_size, endless=True)

    def eval_streams(self, stage):
        return [SampleStream(name, self.generate, 5, 2) for name in ("a", "b")]

    @staticmethod
    def generate(number, indices_B):
        return torch.from_numpy(indices_B)[:, None].clone(), torch.from_numpy(indices_B)[:, None].clone()


class Listening(L.LightningModule):
    """Remembers the batches it was trained on; one parameter, and a schedule that may ask for the number of steps."""

    def __init__(self, asks_for_steps=False, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asks_for_steps, self.fail_at = asks_for_steps, fail_at
        self.heard, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        if self.fail_at == len(self.heard):
            raise RuntimeError("interrupted")
        self.heard.append(batch[0][0, 0].item() // 2)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.evaluated.append((dataloader_idx, batch[1].flatten().tolist()))

    def configure_optimizers(self):
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Save after a number of steps, from the hook that ModelCheckpoint uses."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def quiet_trainer(path, *callbacks, **limits):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=path,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        **limits,
    )


EPOCHS, STEPS = {"max_epochs": 3}, {"max_steps": 15, "max_epochs": -1}


@pytest.mark.parametrize(
    ("step", "limits", "asks_for_steps", "num_workers"),
    [
        (3, EPOCHS, False, 0),
        (8, EPOCHS, True, 0),
        (8, STEPS, False, 2),
        (8, STEPS, True, 0),
        (10, EPOCHS, True, 0),  # after the last batch of an epoch
        (10, STEPS, False, 0),
        (3, {**EPOCHS, "limit_train_batches": 4}, False, 0),
    ],
)
def test_a_resumed_run_hears_what_an_uninterrupted_one_would(tmp_path, step, limits, asks_for_steps, num_workers):
    whole = Listening(asks_for_steps)
    quiet_trainer(tmp_path, SaveAt(step, tmp_path / "mid.ckpt"), **limits).fit(whole, Counting(num_workers))
    assert whole.heard == list(range(12 if "limit_train_batches" in limits else 15))
    resumed = Listening(asks_for_steps)
    quiet_trainer(tmp_path, **limits).fit(resumed, Counting(num_workers), ckpt_path=tmp_path / "mid.ckpt")
    assert resumed.heard == whole.heard[step:]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 10, "max_epochs": -1}])
@pytest.mark.parametrize("asks_for_steps", [False, True])
def test_a_finished_run_goes_on_from_the_end_of_its_epoch(tmp_path, limits, asks_for_steps):
    first = Listening(asks_for_steps)
    saving = ModelCheckpoint(tmp_path, filename="end", every_n_epochs=1, save_on_train_epoch_end=True)
    quiet_trainer(tmp_path, saving, **limits).fit(first, Counting())
    second = Listening(asks_for_steps)
    longer = {name: limit + limit // 2 if limit > 0 else limit for name, limit in limits.items()}
    again = ModelCheckpoint(tmp_path, filename="end", every_n_epochs=1, save_on_train_epoch_end=True)
    quiet_trainer(tmp_path, again, **longer).fit(second, Counting(), ckpt_path=tmp_path / "end.ckpt")
    assert first.heard + second.heard == list(range(15))
    assert {loader for loader, _ in second.evaluated} == {0, 1}


def test_a_batch_whose_step_was_interrupted_is_heard_again(tmp_path):
    first = Listening(fail_at=7)
    trainer = quiet_trainer(tmp_path, **EPOCHS)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(first, Counting())
    trainer.save_checkpoint(tmp_path / "interrupted.ckpt")
    second = Listening()
    quiet_trainer(tmp_path, **EPOCHS).fit(second, Counting(), ckpt_path=tmp_path / "interrupted.ckpt")
    assert first.heard + second.heard == list(range(15))


def test_overfitting_repeats_the_same_batches(tmp_path):
    model = Listening()
    quiet_trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, Counting())
    assert model.heard == [0, 1] * 3


def test_validation_reads_every_slice_whole(tmp_path):
    model = Listening()
    quiet_trainer(tmp_path).validate(model, Counting(), verbose=False)
    assert model.evaluated == [(loader, batch) for loader in (0, 1) for batch in ([0, 1], [2, 3], [4])]


# Options --------------------------------------------------------------------------------------------------------------


def test_options_come_from_the_command_line():
    parser = ArgumentParser()
    parser.add_class_arguments(AssociativeRecall, "data")
    parser.add_class_arguments(Copying, "copying")
    options = parser.parse_args(
        ["--data.train_mixture", "[[64,4],[128,8]]", "--data.variant=fuzzy", "--copying.test_lengths=[8,16]"]
    )
    assert [list(size) for size in options.data.train_mixture] == [[64, 4], [128, 8]]
    assert list(options.copying.test_lengths) == [8, 16]
    tasks = parser.instantiate(parser.parse_args(["--data.val_slices", "[[24,3]]"]))
    assert tasks.data.slice_names("validate") == ["24x3"]


def test_slices_and_metrics_are_named():
    recall, copying = AssociativeRecall(), Copying(free_running=True)
    assert recall.slice_names("test") == ["64x4", "64x8", "64x16", "128x32", "256x64", "512x128", "1024x256"]
    assert recall.metrics == ("accuracy", "exact_match")
    assert copying.slice_names("validate") == ["64"]
    assert copying.metrics == ("accuracy", "exact_match", "free_running_exact_match")
    assert [len(task.test_dataloader()) for task in (recall, copying)] == [7, 5]
    assert [len(task.predict_dataloader()) for task in (recall, copying)] == [7, 5]
    assert copying.description["task"] == "Copying"
    assert copying.description["vocab_size"] == copying.vocab_size == 32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Copying(batch_size=0), "--data.batch_size is 0; it must be at least 1"),
        (lambda: Copying(num_workers=-1), "--data.num_workers"),
        (lambda: Copying(vocab_size=3), "--data.vocab_size is 3; it must be at least 4"),
        (lambda: Copying(vocab_size=4, selective=True), "--data.vocab_size is 4; it must be at least 5"),
        (lambda: Copying(min_length=9, max_length=8), "--data.max_length is 8; it must be at least 9"),
        (lambda: Copying(min_length=0), "--data.min_length"),
        (lambda: Copying(val_lengths=()), "--data.val_lengths is empty"),
        (lambda: Copying(test_lengths=(8, 0)), "--data.test_lengths is 0"),
        (lambda: Copying(num_blanks=-1), "--data.num_blanks"),
        (lambda: Copying(selective=True, min_blanks=65), "--data.min_blanks is 65; it must be 0 to 64"),
        (lambda: Copying(min_blanks=1), "--data.min_blanks is 1; it needs --data.selective true"),
        (lambda: Copying(free_running=True, feedback=False), "--data.free_running true needs --data.feedback true"),
        (lambda: Copying(samples_per_epoch=0), "--data.samples_per_epoch"),
        (
            lambda: AssociativeRecall(train_mixture=((64, 17),)),
            "--data.train_mixture [64, 17]: N=17 pairs and .* 4 N <= T",
        ),
        (lambda: AssociativeRecall(test_slices=((64, 0),)), "--data.test_slices [64, 0] has no pairs"),
        (lambda: AssociativeRecall(val_slices=()), "--data.val_slices is empty"),
        (lambda: AssociativeRecall(vocab_size=16, train_mixture=((64, 8),)), "--data.vocab_size 16 has only 7 keys"),
        (lambda: AssociativeRecall(variant="fuzzy"), "need 384 <= T in the fuzzy variant"),
        (lambda: AssociativeRecall(noise_fraction=1.0), "--data.noise_fraction"),
        (lambda: AssociativeRecall(num_noise_tokens=0), "--data.num_noise_tokens"),
        (lambda: AssociativeRecall(reassigned_fraction=1.5), "--data.reassigned_fraction"),
        (lambda: AssociativeRecall(power_a=0.0), "--data.power_a"),
        (lambda: AssociativeRecall(num_test_samples=0), "--data.num_test_samples"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        build()


# Chance ---------------------------------------------------------------------------------------------------------------


def test_chance_is_what_a_guess_by_frequency_gets(tmp_path):
    assert Copying(vocab_size=32).chance == {"accuracy": 1 / 30}
    assert Copying(vocab_size=33, selective=True).chance == {"accuracy": 1 / 30}
    assert AssociativeRecall().chance == {"accuracy": 1 / 4096}
    assert Binding(vocab_size=64).chance == {"accuracy": 1 / 32}
    (tmp_path / "text.txt").write_text("aabb" * 25 + "ccdd" * 25)  # of the first 180: 50, 50, 40, 40
    text = CharText(corpus=str(tmp_path / "text.txt"), seq_len=4)
    assert text.chance["bits_per_char"] == pytest.approx(1.9911, abs=1e-4)
