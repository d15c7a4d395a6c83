"""Probes of binding: does a key belong to its value one way only, in its order, and as a whole of its parts?

Asymmetric: a model that recalls is asked with a value, and must not answer with the key. Ordered and compositional: a
small task of its own. Four tokens a, b, c, d make four keys of two tokens, each stored with its own value, in random
order, and then asked for in another:

    a b v1   b a v2   a c v3   d b v4      ...      b a .   a b .   d b .   a c .        scored at a key's end

Who goes by the last token, by the first, or by both without their order, has two values to choose from for "a b", so
that none of these gets more than half of them right. No answer is read back: there is nothing to exclude values by.

Shapes: B rows, T time, N entries of a row, N = 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import Batch, LanguageModel, mixed_seed
from models.metrics import IGNORED

VOCAB_SIZE = 64
BLANK = 0  # stands where a value is asked for
FIRST_VALUE = 32  # keys are made of 1 ... 31
KEYS = ((0, 1), (1, 0), (0, 2), (3, 1))  # of the tokens a, b, c, d: "a b", "b a", "a c", "d b"
ASKED = 0  # the entry of KEYS that all shortcuts confuse with another
ROLES = ("own", "swapped", "first", "last")  # whose value it is that "a b" is answered with
ENTRY = 3  # tokens of one


def distinct(rows: int, num: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """`num` different tokens of low ... high - 1 for each row, in random order: (rows, num)."""
    return torch.rand(rows, high - low, generator=generator).argsort(1)[:, :num] + low


def write_entries(key_BN2: Tensor, last_BN: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Entries in random order, (B, 3 N), and the order, (B, N)."""
    order_BN = torch.rand(last_BN.shape, generator=generator).argsort(1)
    entry_BN3 = torch.cat((key_BN2, last_BN.unsqueeze(2)), 2)
    return entry_BN3.gather(1, order_BN.unsqueeze(2).expand(-1, -1, ENTRY)).flatten(1), order_BN


def binding_batch(rows: int, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
    """A batch, the values (B, N) in the order of KEYS, and the positions (B,) where "a b" has been asked."""
    part_B4 = distinct(rows, 4, BLANK + 1, FIRST_VALUE, generator)
    value_BN = distinct(rows, len(KEYS), FIRST_VALUE, VOCAB_SIZE, generator)
    key_BN2 = part_B4[:, torch.tensor(KEYS)]
    stored_BT, _ = write_entries(key_BN2, value_BN, generator)
    asked_BT, order_BN = write_entries(key_BN2, torch.full_like(value_BN, BLANK), generator)
    inputs_BT = torch.cat((stored_BT, asked_BT), 1)
    targets_BT = torch.full_like(inputs_BT, IGNORED)
    ends_N = stored_BT.size(1) + torch.arange(len(KEYS)) * ENTRY + 1
    targets_BT[:, ends_N] = value_BN.gather(1, order_BN)
    return (inputs_BT, targets_BT), value_BN, ends_N[(order_BN == ASKED).long().argmax(1)]


@dataclass(frozen=True)
class BindingTask:
    """The small task: batches that are a function of (seed, split, number)."""

    seed: int
    rows: int
    vocab_size: int = VOCAB_SIZE

    def generator(self, split: str, number: int) -> torch.Generator:
        """Where the randomness of a batch comes from."""
        return torch.Generator().manual_seed(mixed_seed(self.seed, ("train", "test").index(split), number))

    def train_batches(self) -> Iterator[Batch]:
        """The endless training stream."""
        number = 0
        while True:
            yield binding_batch(self.rows, self.generator("train", number))[0]
            number += 1

    @torch.no_grad()
    def confusion(self, model: LanguageModel, rows: int, device: str) -> dict[str, float]:
        """How often "a b" is answered with its own value, and with those that a shortcut would take it for."""
        (inputs_BT, _), value_BN, at_B = binding_batch(rows, self.generator("test", 0))
        answers_BT = model.eval()(inputs_BT.to(device)).argmax(-1).cpu()
        answer_B1 = answers_BT.gather(1, at_B.unsqueeze(1))
        return dict(zip(ROLES, (answer_B1 == value_BN).double().mean(0).tolist(), strict=True))


def asked_by_value(batch: Batch) -> Batch:
    """A batch of recall turned round: where a key was queried stands its value, and the key is what is looked for."""
    inputs_BT, targets_BT = batch
    queried_BT = targets_BT != IGNORED
    return torch.where(queried_BT, targets_BT, inputs_BT), torch.where(queried_BT, inputs_BT, IGNORED)
