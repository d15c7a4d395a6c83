"""Batches of multi-query associative recall (MQAR): pairs of key and value, then every key once, asking for its value.

    k1 v1 k2 v2 ... kN vN . . k2 . k1 . . . kN . .        scored where a key is queried, with its value as target

N distinct keys from 1 ... V/2 - 1, N distinct values from V/2 ... V - 1, queries at offsets 2 gap after the pairs; the
gaps are drawn without replacement, P(gap) ∝ (gap + 1)^(a - 1), for one key after the other. Compatible with Arora et
al. 2023, Zoology (arXiv 2312.04927). Three variants:

    noisy        noise tokens, which are no keys or values, stand between the pairs (Poli et al. 2024, arXiv 2403.17844)
    fuzzy        keys and values are words of 1 to 3 tokens (same); fillers are no key tokens, so that words have ends
    forgetting   some keys get a second, different value; the one that comes last counts

A word is one integer: its tokens are digits to base K + 1, for an alphabet of K tokens, the first lowest, 0 for none.

Shapes: B rows, T time, N keys, A >= N pairs, S tokens of the longest word, M items of a context or candidates drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import IGNORED, Batch, check_at_least
from datamodules.randomness import (
    Bits,
    Ints,
    first_distinct,
    random_bits,
    random_floats,
    random_integers,
    random_mask,
    stream_key,
)

Variant = Literal["standard", "noisy", "fuzzy", "forgetting"]
FUZZY_WORD = 3  # tokens of the longest word of the fuzzy variant


@dataclass(frozen=True)
class Recall:
    """What a sample of the task is made by, but for its size."""

    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True
    variant: Variant = "standard"
    noise_fraction: float = 0.2
    num_noise_tokens: int = 16
    reassigned_fraction: float = 0.5

    @property
    def word_len(self) -> int:
        """Tokens of the longest word."""
        return FUZZY_WORD if self.variant == "fuzzy" else 1

    @property
    def num_keys(self) -> int:
        """Tokens that keys are made of: 1 ... num_keys."""
        return self.vocab_size // 2 - 1

    @property
    def first_value(self) -> int:
        """The smallest token that values are made of."""
        return self.vocab_size // 2

    @property
    def first_noise(self) -> int:
        """The smallest noise token, where values end; the vocabulary's size without noise."""
        return self.vocab_size - (self.num_noise_tokens if self.variant == "noisy" else 0)

    def num_noise(self, num_pairs: int) -> int:
        """Noise tokens between `num_pairs` pairs."""
        ratio = self.noise_fraction / (1 - self.noise_fraction)
        return round(2 * num_pairs * ratio) if self.variant == "noisy" else 0

    def num_assigned(self, num_pairs: int) -> int:
        """Pairs in the context when `num_pairs` keys are asked for."""
        return num_pairs + (round(num_pairs * self.reassigned_fraction) if self.variant == "forgetting" else 0)

    def context_len(self, num_pairs: int) -> int:
        """Tokens before the first place for a query."""
        return 2 * self.word_len * self.num_assigned(num_pairs) + self.num_noise(num_pairs)

    def check_parameters(self) -> None:
        """Raise ValueError for a parameter out of range."""
        check_at_least(1, num_noise_tokens=self.num_noise_tokens)
        if not 0 <= self.noise_fraction < 1:
            raise ValueError(f"--data.noise_fraction is {self.noise_fraction}; it must be at least 0 and below 1")
        if not 0 <= self.reassigned_fraction <= 1:
            raise ValueError(f"--data.reassigned_fraction is {self.reassigned_fraction}; it must be between 0 and 1")
        if self.power_a <= 0:
            raise ValueError(f"--data.power_a is {self.power_a}; it must be positive (1 makes gaps uniform)")

    def check_size(self, seq_len: int, num_pairs: int, option: str) -> None:
        """Raise ValueError unless `num_pairs` pairs and as many queries fit the length and the vocabulary."""
        size = f"--data.{option} [{seq_len}, {num_pairs}]"
        needed = self.context_len(num_pairs) + 2 * self.word_len * num_pairs
        if num_pairs < 1:
            raise ValueError(f"{size} has no pairs; the second number of [T, N] must be at least 1")
        if needed > seq_len:
            why = "4 N <= T" if self.variant == "standard" else f"{needed} <= T in the {self.variant} variant"
            raise ValueError(f"{size}: N={num_pairs} pairs and their queries need {why}; use a longer T or a smaller N")
        available = max(0, min(self.num_keys, self.first_noise - self.first_value))
        if available < self.num_assigned(num_pairs):
            raise ValueError(
                f"--data.vocab_size {self.vocab_size} has only {available} keys or values, but {size} needs "
                f"{self.num_assigned(num_pairs)} distinct ones; use a larger vocabulary or a smaller N"
            )


def random_words(bits: Bits, num_tokens: int, word_len: int) -> Ints:
    """Bits (B, M * (1 + S)) -> words (B, M) of uniform length 1 ... S and uniform tokens."""
    bits_BMS = bits.reshape(len(bits), -1, 1 + word_len)
    lengths_BM1 = random_integers(bits_BMS[:, :, :1], word_len) + 1
    tokens_BMS = random_integers(bits_BMS[:, :, 1:], num_tokens) + 1
    place_S = np.arange(word_len)
    words_BM: Ints = (tokens_BMS * (place_S < lengths_BM1) * (num_tokens + 1) ** place_S).sum(2)
    return words_BM


def distinct_words(key: int, indices_B: Ints, num: int, num_tokens: int, word_len: int) -> Ints:
    """`num` distinct random words (B, num)."""

    def draw(tries: int) -> Ints:
        return random_words(random_bits(key, indices_B, tries * (1 + word_len)), num_tokens, word_len)

    return first_distinct(draw, num)


def spell(words: Ints, num_tokens: int, word_len: int, first_token: int) -> Ints:
    """Words (...) -> tokens (..., S), the first digit being `first_token`; -1 after a word's end."""
    digits = words[..., None] // (num_tokens + 1) ** np.arange(word_len) % (num_tokens + 1)
    return np.where(digits > 0, digits + first_token - 1, -1)


def query_gaps(key: int, indices_B: Ints, num_slots: int, num: int, power_a: float) -> Ints:
    """`num` of the gaps 0 ... num_slots - 1, (B, num), drawn one after the other with P ∝ (gap + 1)^(a - 1).

    Exponential clocks of those rates ring in that very order (Efraimidis & Spirakis 2006).
    """
    weights = np.arange(1, num_slots + 1) ** (power_a - 1.0)
    clocks = torch.from_numpy(-np.log(random_floats(random_bits(key, indices_B, num_slots))) / weights)
    gaps: Ints = clocks.topk(num, largest=False).indices.numpy()
    return gaps


def assigned_keys(key: int, indices_B: Ints, num_pairs: int, num_assigned: int) -> Ints:
    """Which key, 0 ... N - 1, each pair assigns, (B, A): all, some twice, in random order; in order if A = N."""
    order_BN = np.tile(np.arange(num_pairs), (len(indices_B), 1))
    if num_assigned == num_pairs:
        return order_BN
    bits = random_bits(key, indices_B, num_pairs + num_assigned)
    again_BR = bits[:, :num_pairs].argsort(1)[:, : num_assigned - num_pairs]
    all_BA = np.concatenate((order_BN, again_BR), axis=1)
    return np.take_along_axis(all_BA, bits[:, num_pairs:].argsort(1), 1)


def place(row_BT: Ints, start_BN: Ints, tokens_BNS: Ints) -> None:
    """Write words into rows from given positions on; tokens of -1 are left out."""
    rows, words, places = np.nonzero(tokens_BNS >= 0)
    row_BT[rows, start_BN[rows, words] + places] = tokens_BNS[rows, words, places]


def close_up(tokens_BNS: Ints) -> Ints:
    """Move tokens to the left over the -1 before them, in order."""
    return np.take_along_axis(tokens_BNS, (tokens_BNS < 0).argsort(2, kind="stable"), 2)


def context_starts(lengths_BA: Ints, is_noise_BM: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Positions of the A pairs and of the noise tokens, which come in the order the mask over both says."""
    lengths_BM = np.ones(is_noise_BM.shape, dtype=np.int64)
    lengths_BM[~is_noise_BM] = lengths_BA.ravel()
    starts_BM = lengths_BM.cumsum(1) - lengths_BM
    num_rows = len(is_noise_BM)
    return starts_BM[~is_noise_BM].reshape(num_rows, -1), starts_BM[is_noise_BM].reshape(num_rows, -1)


def fillers(key: int, indices_B: Ints, seq_len: int, recall: Recall) -> Ints:
    """What stands where nothing else does (B, T): zeros, or uniform tokens (fuzzy: uniform tokens that are no keys)."""
    if not recall.random_non_queries:
        return np.zeros((len(indices_B), seq_len), dtype=np.int64)
    first = recall.first_value if recall.variant == "fuzzy" else 0
    return random_integers(random_bits(key, indices_B, seq_len), recall.vocab_size - first) + first


def pairs_and_answers(name: tuple[int | str, ...], indices_B: Ints, N: int, recall: Recall) -> tuple[Ints, Ints, Ints]:
    """The N keys (B, N, S), the A pairs in the context (B, A, 2 S), closed up, and each key's value (B, N, S)."""
    A, S, num_values = recall.num_assigned(N), recall.word_len, recall.first_noise - recall.first_value
    keys = distinct_words(stream_key(*name, "keys"), indices_B, N, recall.num_keys, S)
    values = distinct_words(stream_key(*name, "values"), indices_B, A, num_values, S)
    keys_BNS = spell(keys, recall.num_keys, S, 1)
    values_BAS = spell(values, num_values, S, recall.first_value)
    assigned_BA = assigned_keys(stream_key(*name, "order"), indices_B, N, A)
    last_BN = np.zeros((len(indices_B), N), dtype=np.int64)
    np.maximum.at(last_BN, (np.arange(len(indices_B))[:, None], assigned_BA), np.arange(A))
    pairs_BAS = np.concatenate((np.take_along_axis(keys_BNS, assigned_BA[..., None], 1), values_BAS), axis=2)
    return keys_BNS, close_up(pairs_BAS), np.take_along_axis(values_BAS, last_BN[..., None], 1)


def write_context(name: tuple[int | str, ...], indices_B: Ints, row_BT: Ints, pairs_BAS: Ints, recall: Recall) -> None:
    """Write the pairs, one after the other from the left, and the noise between them."""
    num_noise = recall.num_noise(pairs_BAS.shape[1])
    num_items = pairs_BAS.shape[1] + num_noise
    bits = random_bits(stream_key(*name, "noise"), indices_B, num_items + num_noise)
    pair_BA, noise_BM = context_starts((pairs_BAS >= 0).sum(2), random_mask(bits[:, :num_items], num_noise))
    place(row_BT, pair_BA, pairs_BAS)
    noise = random_integers(bits[:, num_items:], recall.num_noise_tokens) + recall.first_noise
    np.put_along_axis(row_BT, noise_BM, noise, axis=1)


def recall_batch(seed: int, split: str, indices_B: Ints, seq_len: int, num_pairs: int, recall: Recall) -> Batch:
    """Samples `indices_B` of a split -> (inputs, targets), (B, T); a value is the target where its key is queried."""
    name = (seed, "recall", recall.variant, split, seq_len, num_pairs)
    keys_BNS, pairs_BAS, answers_BNS = pairs_and_answers(name, indices_B, num_pairs, recall)
    inputs_BT = fillers(stream_key(*name, "fillers"), indices_B, seq_len, recall)
    write_context(name, indices_B, inputs_BT, pairs_BAS, recall)
    context, slot = recall.context_len(num_pairs), 2 * recall.word_len
    num_slots = (seq_len - context) // slot
    gaps_BN = query_gaps(stream_key(*name, "gaps"), indices_B, num_slots, num_pairs, recall.power_a)
    query_BN = context + slot * gaps_BN
    # In a query the value is read after the key, but for its last token: nothing is asked after that.
    read_BNS = np.where(np.roll(answers_BNS, -1, 2) >= 0, answers_BNS, -1)
    read_BNS[:, :, -1] = -1
    place(inputs_BT, query_BN, close_up(np.concatenate((keys_BNS, read_BNS), axis=2)))
    targets_BT = np.full(inputs_BT.shape, IGNORED)
    place(targets_BT, query_BN + (keys_BNS >= 0).sum(2) - 1, answers_BNS)
    return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)
