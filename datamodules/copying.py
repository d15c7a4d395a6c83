"""Copying: repeat a random string after a separator, and do so at lengths never trained on.

    BOS x1 ... xn SEP x1 ... xn        x uniform over the alphabet, the second half scored

A fixed-size state must hold n log2(alphabet) bits, which is what the task measures. In the selective variant (Gu & Dao
2023, arXiv 2312.00752) blanks stand at random places between the tokens to copy and must be skipped. Without feedback
separators are read in the place of the copy, so that it has to be known how many tokens of it were written.

Tokens: 0 BOS, 1 SEP, (selective: 2 blank,) then the alphabet.
Shapes: B rows, N length of the string, M places it is spread over, T = N + M + 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from datamodules.base import IGNORED, Batch, SampleStream, TaskData, check_at_least
from datamodules.randomness import Ints, random_bits, random_integers, random_mask, stream_key

BOS, SEP, BLANK = 0, 1, 2


def copying_batch(
    seed: int,
    split: str,
    indices_B: Ints,
    length: int,
    *,
    vocab_size: int = 32,
    num_blanks: int | None = None,
    feedback: bool = True,
) -> Batch:
    """Samples `indices_B` of a split -> (inputs, targets), (B, 2 length + 1), plus `num_blanks` in T if selective."""
    blanks, first_symbol = (0, BLANK) if num_blanks is None else (num_blanks, BLANK + 1)
    bits = random_bits(stream_key(seed, "copying", split, length, blanks), indices_B, 2 * length + blanks)
    string_BN = random_integers(bits[:, :length], vocab_size - first_symbol) + first_symbol
    spread_BM = np.full((len(indices_B), length + blanks), BLANK)
    # Boolean indexing is row-major and every row has N marks, so each row gets its own string, in order.
    spread_BM[random_mask(bits[:, length:], length)] = string_BN.ravel()
    bos_B1, sep_B1 = (np.full((len(indices_B), 1), token) for token in (BOS, SEP))
    tokens = torch.from_numpy(np.concatenate((bos_B1, spread_BM, sep_B1, string_BN), axis=1))
    inputs_BT, targets_BT = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    if not feedback:
        inputs_BT[:, length + blanks + 2 :] = SEP
    targets_BT[:, : length + blanks + 1] = IGNORED
    return inputs_BT, targets_BT


def drawn(seed: int, what: str, number: int, least: int, most: int) -> int:
    """A number for all of training batch `number`, uniform between the two."""
    bits = random_bits(stream_key(seed, "copying", what), np.array([number]), 1)
    return least + int(random_integers(bits, most - least + 1)[0, 0])


def training_batch(
    seed: int,
    min_length: int,
    max_length: int,
    min_blanks: int | None,
    number: int,
    indices_B: Ints,
    *,
    num_blanks: int | None,
    **variant: Any,
) -> Batch:
    """Training samples `indices_B` of batch `number`."""
    length = drawn(seed, "train length", number, min_length, max_length)
    if num_blanks is not None and min_blanks is not None:
        num_blanks = drawn(seed, "train blanks", number, min_blanks, num_blanks)
    return copying_batch(seed, "train", indices_B, length, num_blanks=num_blanks, **variant)


def eval_batch(seed: int, split: str, length: int, number: int, indices_B: Ints, **variant: Any) -> Batch:
    """Samples `indices_B` of a split at one length, whatever the batch."""
    return copying_batch(seed, split, indices_B, length, **variant)


class Copying(TaskData):
    """Copy a random string; lengths beyond the trained ones show what generalises.

    Args:
        vocab_size: Tokens, of which BOS, SEP and, in the selective variant, the blank are not in the alphabet.
        min_length: Shortest string in training.
        max_length: Longest string in training.
        selective: Put blanks at random places of the string, to be left out of the copy.
        num_blanks: Blanks in a string of the selective variant.
        min_blanks: Fewest of them in training, where each batch has a number of its own; by default always num_blanks.
        feedback: Let the model read the string while it copies it. Without, it reads separators there, and has to know
            how many tokens it has copied.
        free_running: Test exact match also when the model reads its own output.
        val_lengths: Lengths validated on.
        test_lengths: Lengths tested on.
        num_val_samples: Strings a length in validation.
        num_test_samples: Strings a length in the test.
        samples_per_epoch: Strings until training calls it an epoch.
        batch_size: Sequences in a batch, over all processes.
        num_workers: Processes that prepare batches ahead, per training process; 0 prepares them in it.
        seed: Seed of the data.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32,
        min_length: int = 8,
        max_length: int = 64,
        selective: bool = False,
        num_blanks: int = 64,
        min_blanks: int | None = None,
        feedback: bool = True,
        free_running: bool = False,
        val_lengths: tuple[int, ...] = (64,),
        test_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        num_val_samples: int = 512,
        num_test_samples: int = 1000,
        samples_per_epoch: int = 65_536,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        specials = 3 if selective else 2
        check_at_least(specials + 2, vocab_size=vocab_size)
        check_at_least(1, min_length=min_length, num_val_samples=num_val_samples, num_test_samples=num_test_samples)
        check_at_least(min_length, max_length=max_length)
        check_at_least(1, samples_per_epoch=samples_per_epoch)
        check_at_least(0, num_blanks=num_blanks)
        if min_blanks is not None and not selective:
            raise ValueError(f"--data.min_blanks is {min_blanks}; it needs --data.selective true, or leave it out")
        if min_blanks is not None and not 0 <= min_blanks <= num_blanks:
            raise ValueError(f"--data.min_blanks is {min_blanks}; it must be 0 to {num_blanks}, --data.num_blanks")
        if free_running and not feedback:
            raise ValueError("--data.free_running true needs --data.feedback true: it feeds back what the model wrote")
        for option, lengths in (("val_lengths", val_lengths), ("test_lengths", test_lengths)):
            if not lengths:
                raise ValueError(f"--data.{option} is empty; give at least one length, such as [64]")
            check_at_least(1, **{option: min(lengths)})
        self.vocab_size = vocab_size
        self.num_blanks = num_blanks if selective else None
        self.variant = {"vocab_size": vocab_size, "num_blanks": self.num_blanks, "feedback": feedback}
        self.lengths = {"validate": val_lengths, "test": test_lengths}
        self.num_samples = {"validate": num_val_samples, "test": num_test_samples}
        self.metrics = ("accuracy", "exact_match", *(("free_running_exact_match",) if free_running else ()))

    @property
    def chance(self) -> dict[str, float]:
        """Any symbol of the alphabet."""
        return {"accuracy": 1 / (self.vocab_size - (3 if self.hparams["selective"] else 2))}

    def train_stream(self) -> SampleStream:
        """Strings whose length changes from batch to batch."""
        drawn_from = (self.hparams[name] for name in ("min_length", "max_length", "min_blanks"))
        generate = partial(training_batch, self.seed, *drawn_from, **self.variant)
        return SampleStream("train", generate, self.hparams["samples_per_epoch"], self.batch_size, endless=True)

    def eval_streams(self, stage: str) -> list[SampleStream]:
        """One stream a length."""
        tokens = self.batch_size * self._seq_len(self.hparams["max_length"])
        return [
            SampleStream(
                str(length),
                partial(eval_batch, self.seed, stage, length, **self.variant),
                self.num_samples[stage],
                self.rows_for(tokens, self._seq_len(length)),
            )
            for length in self.lengths[stage]
        ]

    def _seq_len(self, length: int) -> int:
        return 2 * length + 1 + (self.num_blanks or 0)
