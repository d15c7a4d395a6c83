"""Associative recall: how many key-value pairs can a model hold, and for how long?

Sizes are pairs (T, N) of sequence length and number of pairs; training mixes several, every batch has one, and each
slice of an evaluation is one. What a sample looks like is said in `recall_batches`. The accuracy of interest is that
against the bytes of the model's state (Arora et al. 2023, arXiv 2312.04927).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from datamodules.base import IGNORED, Batch, SampleStream, TaskData, check_at_least
from datamodules.randomness import Ints, random_bits, random_integers, stream_key
from datamodules.recall_batches import Recall, Variant, recall_batch

Sizes = tuple[tuple[int, int], ...]  # pairs (T, N)


def training_size(seed: int, number: int, mixture: Sizes) -> tuple[int, int]:
    """(T, N) of training batch `number`, each size of the mixture being equally likely."""
    bits = random_bits(stream_key(seed, "recall", "train size"), np.array([number]), 1)
    seq_len, num_pairs = mixture[int(random_integers(bits, len(mixture))[0, 0])]
    return seq_len, num_pairs


def training_batch(seed: int, mixture: Sizes, recall: Recall, number: int, indices_B: Ints) -> Batch:
    """Training samples `indices_B` of batch `number`."""
    return recall_batch(seed, "train", indices_B, *training_size(seed, number, mixture), recall)


def eval_batch(
    seed: int, split: str, seq_len: int, num_pairs: int, recall: Recall, by_value: bool, number: int, indices_B: Ints
) -> Batch:
    """Samples `indices_B` of a split at one size, whatever the batch."""
    batch = recall_batch(seed, split, indices_B, seq_len, num_pairs, recall)
    return turned_round(batch) if by_value else batch


def turned_round(batch: Batch) -> Batch:
    """The batch asked the other way: where a key was queried stands its value, and the key is what is looked for."""
    inputs_BT, targets_BT = batch
    queried_BT = targets_BT != IGNORED
    return torch.where(queried_BT, targets_BT, inputs_BT), torch.where(queried_BT, inputs_BT, IGNORED)


def slice_name(seq_len: int, num_pairs: int, by_value: bool) -> str:
    """What a slice is called in metrics: TxN, or TxN-by-value."""
    return f"{seq_len}x{num_pairs}{'-by-value' if by_value else ''}"


class AssociativeRecall(TaskData):
    """Look up the values of many keys; sizes are pairs [T, N] of sequence length and number of key-value pairs.

    Args:
        vocab_size: Tokens; the lower half makes keys, the upper half values.
        train_mixture: Sizes [T, N] trained on; every batch has one of them, each equally often.
        val_slices: Sizes [T, N] validated on.
        test_slices: Sizes [T, N] tested on.
        test_by_value: Sizes [T, N] tested on with values as queries, whose keys are looked for; no part of the mean.
        random_non_queries: Fill what is left with random tokens, which may repeat a key; otherwise with zeros.
        power_a: The gap before a query has P(gap) proportional to gap^(a - 1); 1 is uniform.
        variant: Noise between the pairs, words of 1 to 3 tokens, or keys that get a second value.
        noise_fraction: Part of the noisy variant's context that is noise.
        num_noise_tokens: Tokens, at the vocabulary's end, that the noisy variant keeps for noise.
        reassigned_fraction: Part of the forgetting variant's keys that get a second value.
        num_val_samples: Sequences a slice in validation.
        num_test_samples: Sequences a slice in the test.
        samples_per_epoch: Sequences until training calls it an epoch.
        batch_size: Sequences in a batch, over all processes.
        num_workers: Processes that prepare batches ahead, per training process; 0 prepares them in it.
        seed: Seed of the data.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 8192,
        train_mixture: Sizes = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64)),
        val_slices: Sizes = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64)),
        test_slices: Sizes = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)),
        test_by_value: Sizes | None = None,
        random_non_queries: bool = True,
        power_a: float = 0.01,
        variant: Variant = "standard",
        noise_fraction: float = 0.2,
        num_noise_tokens: int = 16,
        reassigned_fraction: float = 0.5,
        num_val_samples: int = 512,
        num_test_samples: int = 1000,
        samples_per_epoch: int = 65_536,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        check_at_least(1, num_val_samples=num_val_samples, num_test_samples=num_test_samples)
        check_at_least(1, samples_per_epoch=samples_per_epoch)
        self.recall = Recall(
            vocab_size, power_a, random_non_queries, variant, noise_fraction, num_noise_tokens, reassigned_fraction
        )
        self.recall.check_parameters()
        self.train_mixture = train_mixture
        self.slices = {"validate": val_slices, "test": test_slices}
        self.by_value = {"validate": (), "test": test_by_value or ()}
        if test_by_value and variant == "fuzzy":
            raise ValueError("--data.test_by_value asks with one token, and --data.variant fuzzy has longer words")
        for option, sizes in (
            ("train_mixture", train_mixture),
            ("val_slices", val_slices),
            ("test_slices", test_slices),
            ("test_by_value", test_by_value),
        ):
            if not sizes and sizes is not None:
                raise ValueError(f"--data.{option} is empty; give at least one size [T, N], such as [[64, 4]]")
            for seq_len, num_pairs in sizes or ():
                self.recall.check_size(seq_len, num_pairs, option)
        self.vocab_size = vocab_size
        self.num_samples = {"validate": num_val_samples, "test": num_test_samples}
        self.metrics = ("accuracy", "exact_match")

    @property
    def chance(self) -> dict[str, float]:
        """Any value of the vocabulary."""
        return {"accuracy": 1 / (self.recall.first_noise - self.recall.first_value)}

    def train_stream(self) -> SampleStream:
        """Sequences whose size changes from batch to batch."""
        generate = partial(training_batch, self.seed, self.train_mixture, self.recall)
        return SampleStream("train", generate, self.hparams["samples_per_epoch"], self.batch_size, endless=True)

    def eval_streams(self, stage: str) -> list[SampleStream]:
        """One stream a size, then those asked by value."""
        tokens = self.batch_size * max(seq_len for seq_len, _ in self.train_mixture)
        slices = [(*size, False) for size in self.slices[stage]] + [(*size, True) for size in self.by_value[stage]]
        return [
            SampleStream(
                slice_name(seq_len, num_pairs, by_value),
                partial(eval_batch, self.seed, stage, seq_len, num_pairs, self.recall, by_value),
                self.num_samples[stage],
                self.rows_for(tokens, seq_len),
            )
            for seq_len, num_pairs, by_value in slices
        ]

    def headline(self, stage: str) -> list[str]:
        """The slices asked by key."""
        return self.slice_names(stage)[: len(self.slices[stage])]
