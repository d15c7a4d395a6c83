"""Character language modelling: predict each character of a text from those before it, measured in bits per character.

The text is split by position. Training draws windows of `seq_len` characters at random places; validation and test read
their whole split once, in consecutive windows, so that the number is the split's and not that of some lucky batches.
Windows longer than in training show whether more context helps.

    bits per character = mean negative log-likelihood in nats / ln 2

Shapes: B rows, T window length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.base import IGNORED, Batch, SampleStream, TaskData, check_at_least
from datamodules.corpora import PYTHON_STDLIB, Corpus, load_corpus, shown_name
from datamodules.encoding import TRAIN_PERCENT
from datamodules.randomness import Ints, random_bits, random_integers, stream_key

# Ends of train and validation, begin of test, in percent.
SPLITS = {"90/5/5": (TRAIN_PERCENT, 95, 95), "90/10": (TRAIN_PERCENT, 100, 90)}


def shown(characters: Sequence[str]) -> str:
    """Characters as a message shows them: all of a hundred, or the first few of more and how many there are."""
    if len(characters) <= 100:
        return repr(characters)
    return f"{characters[:20]!r} and more, {len(characters):,} in all"


def split_text(ids: NDArray[Any], split: str) -> dict[str, NDArray[Any]]:
    """Cut a text by position into "train", "validate" and "test", which share no character but as `split` says."""
    train_end, val_end, test_begin = (len(ids) * percent // 100 for percent in SPLITS[split])
    return {"train": ids[:train_end], "validate": ids[train_end:val_end], "test": ids[test_begin:]}


def windows(ids: NDArray[Any], starts_B: Ints, seq_len: int) -> Batch:
    """Windows that begin at `starts_B` -> (inputs, targets), (B, T); beyond the end inputs are 0, nothing is scored."""
    places = starts_B[:, None] + np.arange(seq_len + 1)
    inside = places < len(ids)
    tokens = ids[np.minimum(places, len(ids) - 1)].astype(np.int64)
    # An input without a target is beyond the end, too: the last character is predicted, never read.
    inputs_BT = np.where(inside[:, 1:], tokens[:, :-1], 0)
    targets_BT = np.where(inside[:, 1:], tokens[:, 1:], IGNORED)
    return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)


def training_batch(ids: NDArray[Any], seed: int, seq_len: int, number: int, indices_B: Ints) -> Batch:
    """Windows at uniformly random places; the place is a function of seed and index."""
    bits = random_bits(stream_key(seed, "text", "train"), indices_B, 1)
    return windows(ids, random_integers(bits, len(ids) - seq_len)[:, 0], seq_len)


def eval_batch(ids: NDArray[Any], seq_len: int, number: int, indices_B: Ints) -> Batch:
    """Consecutive windows: every character but the first is a target exactly once."""
    return windows(ids, indices_B * seq_len, seq_len)


def history_batch(history: NDArray[Any], ids: NDArray[Any], number: int, indices_B: Ints) -> Batch:
    """One window over the history and all of `ids` after it, where alone something is scored."""
    inputs_BT, targets_BT = windows(np.concatenate((history, ids)), indices_B, len(history) + len(ids) - 1)
    targets_BT[:, : len(history) - 1] = IGNORED
    return inputs_BT, targets_BT


class CharText(TaskData):
    """The characters of a text.

    Args:
        corpus: One of python-stdlib (the source of this Python's standard library), tiny-shakespeare, text8, enwik8 (as
            bytes), or the path of a UTF-8 text file, packed (.gz, .zst) or not, or of a folder of such, or several
            paths; many files are one text, in the order of their paths.
        data_dir: Folder of downloaded corpora and encoded texts.
        seq_len: Characters in a window.
        split: Parts of the text, in order, for training, validation and test; 90/10 validates and tests on the same
            tenth, as published numbers of tiny-shakespeare do.
        test_seq_lens: Further window lengths to test at, beside seq_len.
        test_chars: Characters of the test part, from its begin on, that are scored at each length; by default all.
        test_history: Characters before the tested part to read first, in one more test, whose window is all of them and
            the whole part; for models whose memory is cheap. 0 for no such test.
        batch_size: Sequences in a batch, over all processes.
        num_workers: Processes that prepare batches ahead, per training process; 0 prepares them in it.
        seed: Seed of the data.
    """

    metrics = ("bits_per_char", "accuracy")

    def __init__(
        self,
        *,
        corpus: str | list[str] = PYTHON_STDLIB,
        data_dir: str = "data",
        seq_len: int = 256,
        split: Literal["90/5/5", "90/10"] = "90/5/5",
        test_seq_lens: list[int] | None = None,
        test_chars: int | None = None,
        test_history: int = 0,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        check_at_least(1, seq_len=seq_len, test_seq_lens=min(test_seq_lens or [1]))
        self.corpus_given, self.corpus_name = corpus, shown_name(corpus)
        self.data_dir, self.split = data_dir, split
        self.seq_len = seq_len
        check_at_least(0, test_history=test_history)
        self.test_history = test_history
        self.test_seq_lens = list(dict.fromkeys([seq_len, *(test_seq_lens or [])]))
        if test_chars is not None:
            check_at_least(max(self.test_seq_lens), test_chars=test_chars)
        self.test_chars = test_chars

    @cached_property
    def corpus(self) -> Corpus:
        """The text, read when it is first needed, unless it was read and put here before."""
        return load_corpus(self.corpus_given, self.data_dir)

    @property
    def vocabulary(self) -> str:
        """The characters, sorted; a token is a place in it."""
        return self.corpus.vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of different characters."""
        return len(self.vocabulary)

    @cached_property
    def parts(self) -> dict[str, NDArray[Any]]:
        """Character ids of "train", "validate" and "test"; ValueError where a window does not fit."""
        parts = split_text(self.corpus.ids, self.split)
        longest = {"train": self.seq_len, "validate": self.seq_len, "test": max(self.test_seq_lens)}
        for name, part in parts.items():
            option = "seq_len" if longest[name] == self.seq_len else "test_seq_lens"
            if len(part) <= longest[name]:
                raise ValueError(
                    f"--data.{option} {longest[name]} does not fit: the {name} part of {self.corpus_name} has "
                    f"{len(part)} characters; use at most {max(len(part) - 1, 0)} or a longer text"
                )
        before = len(self.corpus.ids) - len(parts["test"])
        if self.test_history > before:
            raise ValueError(
                f"--data.test_history {self.test_history} does not fit: only {before} characters of "
                f"{self.corpus_name} come before its test part"
            )
        return parts

    @property
    def description(self) -> dict[str, Any]:
        """The task's parameters and the text's fingerprint, for a run's record."""
        fingerprint = {"characters": len(self.corpus.ids), "sha256": self.corpus.sha256, "vocab_size": self.vocab_size}
        return super().description | fingerprint

    @property
    def chance(self) -> dict[str, float]:
        """The entropy of the characters, one by one, in the training part."""
        counts_V = np.array(self.corpus.train_counts)
        shares = counts_V[counts_V > 0] / counts_V.sum()
        return {"bits_per_char": float(-(shares * np.log2(shares)).sum())}

    def encode(self, text: str) -> list[int]:
        """Characters -> tokens; ValueError names those that the vocabulary lacks."""
        place = {character: token for token, character in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - place.keys())
        if unknown:
            raise ValueError(
                f"{shown(unknown)} not in the vocabulary of {self.corpus_name}; it has {shown(self.vocabulary)}"
            )
        return [place[character] for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens -> characters."""
        return "".join(self.vocabulary[token] for token in tokens)

    def train_stream(self) -> SampleStream:
        """Random windows; an epoch has as many characters as the training part."""
        ids = self.parts["train"]
        generate = partial(training_batch, ids, self.seed, self.seq_len)
        return SampleStream("train", generate, -(-len(ids) // self.seq_len), self.batch_size, endless=True)

    def eval_streams(self, stage: str) -> list[SampleStream]:
        """One stream a window length, named T=length, in `seq_len` first."""
        ids = self.parts[stage]
        if stage == "test" and self.test_chars is not None:
            ids = ids[: self.test_chars + 1]  # the first is read, and not scored
        streams = [
            SampleStream(
                f"T={seq_len}",
                partial(eval_batch, ids, seq_len),
                -(-(len(ids) - 1) // seq_len),
                self.rows_for(self.batch_size * self.seq_len, seq_len),
            )
            for seq_len in (self.test_seq_lens if stage == "test" else [self.seq_len])
        ]
        if stage == "test" and self.test_history:
            generate = partial(history_batch, self.history, ids)
            streams.append(
                SampleStream(f"history={self.test_history}", generate, num_samples=1, batch_size=self.rows_for(1, 1))
            )
        return streams

    def headline(self, stage: str) -> list[str]:
        """The trained length: other windows are a different question."""
        return self.slice_names(stage)[:1]

    @property
    def history(self) -> NDArray[Any]:
        """The last `test_history` characters before the tested part."""
        end = len(self.corpus.ids) - len(self.parts["test"])
        return self.corpus.ids[end - self.test_history : end]

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary, without which tokens mean nothing, and which text it was."""
        return {"vocabulary": self.vocabulary, "corpus_sha256": self.corpus.sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of other tokens; warn when the text is another one of the same characters."""
        missing = sorted(set(state["vocabulary"]) ^ set(self.vocabulary))
        if missing:
            raise ValueError(
                f"--data.corpus {self.corpus_name} has {self.vocab_size} characters, the checkpoint's text had "
                f"{len(state['vocabulary'])}; they differ in {shown(missing)}. Use the text that it was trained on"
            )
        if state["corpus_sha256"] != self.corpus.sha256:
            rank_zero_warn(f"--data.corpus {self.corpus_name} is not the text that the checkpoint was trained on")
