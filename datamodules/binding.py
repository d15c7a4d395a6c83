"""Binding: does a key belong to its value in its own order, and as a whole of its parts?

Four tokens a, b, c, d make four keys of two tokens, each stored with a value of its own, in random order, and then
asked for in another:

    a b v1   b a v2   a c v3   d b v4      ...      b a .   a b .   d b .   a c .        scored at a key's end

Who goes by the last token, by the first, or by both without their order, has two values to choose from for "a b", so
that none of these gets more than half of them right. No answer is read back: there is nothing to exclude values by.

The test asks for "a b" alone and tells whose value is answered, a slice for each: its own, that of "b a" (swapped), of
"a c" (the same first token), of "d b" (the same last token). Their accuracies add up to one at most.

Tokens: 0 where a value is asked for, then the lower half for keys, the upper half for values.
Shapes: B rows, N = 4 entries of a row, T = 6 N time.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from datamodules.base import IGNORED, Batch, SampleStream, TaskData, check_at_least
from datamodules.randomness import Ints, random_bits, stream_key

BLANK = 0  # stands where a value is asked for
KEYS = ((0, 1), (1, 0), (0, 2), (3, 1))  # of the tokens a, b, c, d: "a b", "b a", "a c", "d b"
ROLES = ("own", "swapped", "first", "last")  # what makes each of KEYS be taken for the first of them
ENTRY = 3  # tokens of a key and its value
MIN_VOCAB_SIZE = 10  # the least whose lower half has four tokens beside the blank


def entries(key_BN2: Ints, last_BN: Ints, order_BN: Ints) -> Ints:
    """Keys and what comes last in each entry, in this order, (B, 3 N)."""
    entry_BN3 = np.concatenate((key_BN2, last_BN[..., None]), axis=2)
    return np.take_along_axis(entry_BN3, order_BN[..., None], 1).reshape(len(order_BN), -1)


def binding_batch(seed: int, split: str, indices_B: Ints, *, vocab_size: int = 64, role: str | None = None) -> Batch:
    """Samples `indices_B` of a split -> (inputs, targets), (B, T).

    All keys are scored, each with its value; with a role "a b" alone, with the value of the key that has this role.
    """

    def shuffled(what: str, num: int) -> Ints:
        return random_bits(stream_key(seed, "binding", split, what), indices_B, num).argsort(1)

    half = vocab_size // 2
    part_B4 = shuffled("parts", half - 1)[:, :4] + 1
    value_BN = shuffled("values", vocab_size - half)[:, : len(KEYS)] + half
    stored_BN, asked_BN = shuffled("stored", len(KEYS)), shuffled("asked", len(KEYS))
    key_BN2 = part_B4[:, KEYS]
    stored_BT = entries(key_BN2, value_BN, stored_BN)
    inputs_BT = np.concatenate((stored_BT, entries(key_BN2, np.full_like(value_BN, BLANK), asked_BN)), axis=1)
    targets_BT = np.full_like(inputs_BT, IGNORED)
    if role is None:
        answer_BN = value_BN
    else:
        answer_BN = np.full_like(value_BN, IGNORED)
        answer_BN[:, 0] = value_BN[:, ROLES.index(role)]
    targets_BT[:, stored_BT.shape[1] + 1 :: ENTRY] = np.take_along_axis(answer_BN, asked_BN, 1)
    return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)


def numbered_batch(seed: int, split: str, vocab_size: int, role: str | None, number: int, indices_B: Ints) -> Batch:
    """Samples `indices_B` of a split, whatever the batch."""
    return binding_batch(seed, split, indices_B, vocab_size=vocab_size, role=role)


class Binding(TaskData):
    """Look up keys of two tokens that differ in order or in one token only; the test tells what a key is taken for.

    Args:
        vocab_size: Tokens; the lower half makes keys, the upper half values.
        num_val_samples: Sequences in validation.
        num_test_samples: Sequences in the test.
        samples_per_epoch: Sequences until training calls it an epoch.
        batch_size: Sequences in a batch, over all processes.
        num_workers: Processes that prepare batches ahead, per training process; 0 prepares them in it.
        seed: Seed of the data.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 64,
        num_val_samples: int = 512,
        num_test_samples: int = 1000,
        samples_per_epoch: int = 65_536,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        check_at_least(MIN_VOCAB_SIZE, vocab_size=vocab_size)
        check_at_least(1, num_val_samples=num_val_samples, num_test_samples=num_test_samples)
        check_at_least(1, samples_per_epoch=samples_per_epoch)
        self.vocab_size = vocab_size
        self.num_samples = {"validate": num_val_samples, "test": num_test_samples}

    @property
    def chance(self) -> dict[str, float]:
        """Any value of the vocabulary."""
        return {"accuracy": 1 / (self.vocab_size - self.vocab_size // 2)}

    def train_stream(self) -> SampleStream:
        """Sequences of which all keys are scored."""
        generate = partial(numbered_batch, self.seed, "train", self.vocab_size, None)
        return SampleStream("train", generate, self.hparams["samples_per_epoch"], self.batch_size, endless=True)

    def eval_streams(self, stage: str) -> list[SampleStream]:
        """In validation one stream as in training; in the test the same sequences once for each role."""
        slices: dict[str, str | None] = {role: role for role in ROLES} if stage == "test" else {"all": None}
        return [
            SampleStream(
                name,
                partial(numbered_batch, self.seed, stage, self.vocab_size, role),
                self.num_samples[stage],
                self.batch_size,
            )
            for name, role in slices.items()
        ]

    def headline(self, stage: str) -> list[str]:
        """The first slice: the others are mistakes."""
        return self.slice_names(stage)[:1]
