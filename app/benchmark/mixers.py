"""Measure every model's mixer against the one-layer Transformer, from short sequences to long ones.

Three questions: how long a training step takes, how much memory its forward and backward pass need at most, and how
long a token takes in decoding. Each model is taken whole, at its defaults, with a small vocabulary. A training batch
has the same number of tokens at every length, so a token's cost depends on the length alone; a mixer that loops over
time pays for long sequences, of which fewer fit beside each other.

A law `cost ~ T^x` is fitted to each curve. Its target is the growth that the model itself claims by `flops_per_token`,
and a little more: what says it is linear must be so on the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import models
from app.benchmark.memory import peak_memory
from app.benchmark.results import Curve, Quantity
from app.benchmark.timing import in_turn, nothing
from app.benchmark.workloads import VOCAB_SIZE, Stream, bare_training, random_batch, waiting_for
from app.cli.names import BASELINE, known_models
from app.output.progress import Tell
from models.base import Batch, LanguageModel

SEQ_LENS = (256, 1024, 4096, 16_384)
TOKENS = 16_384  # of a training batch
SLACK = 0.1  # of a fitted exponent over the claimed one
BUDGET = 45.0  # seconds for the rounds at one length, except that there are MIN_ROUNDS
DECODED = 32  # tokens that a round of decoding reads

TRAINING = Quantity("mixers.training", "Training step", "µs a token", "time of a sequence", 1e6, power=1)
DECODING = Quantity("mixers.decoding", "Decoding after T tokens", "µs a token", "time of a token", 1e6, power=0)
MEMORY = Quantity(
    "mixers.memory", "Peak memory, forward and backward", "KiB a token", "memory of a sequence", 2.0**-10, power=1
)

Models = Mapping[str, LanguageModel]
Samples = dict[str, list[float]]  # for each model, seconds or bytes a token, one a round


def chosen_models(names: Sequence[str] | None) -> tuple[str, ...]:
    """All models' names or those given, the baseline first; ValueError for one that does not exist."""
    return tuple(dict.fromkeys((BASELINE, *known_models(names))))


def chosen_lengths(seq_lens: Sequence[int] | None, tokens: int = TOKENS) -> tuple[int, ...] | None:
    """The lengths in order, each once, None for the usual; ValueError for one that no batch of `tokens` can have."""
    for seq_len in seq_lens or ():
        if not 1 <= seq_len <= tokens:
            raise ValueError(f"--seq_lens has {seq_len}; lengths are from 1 to {tokens}, the tokens of a batch")
    return tuple(sorted(set(seq_lens))) if seq_lens else None


def build(names: Iterable[str], device: str) -> dict[str, LanguageModel]:
    """The models of these names at their defaults."""
    return {name: getattr(models, name)(vocab_size=VOCAB_SIZE).to(device) for name in names}


def training_seconds(
    compared: Models, seq_len: int, device: str, *, tokens: int = TOKENS, repeats: int, budget: float = BUDGET
) -> Samples:
    """Seconds a token of a training step on a batch of `tokens`, clipping and optimizer included."""
    batch = random_batch(tokens // seq_len, seq_len, device)
    steps = [partial(bare_training(model.train())[0], batch) for model in compared.values()]
    seconds = in_turn(steps, repeats, warmup=1, budget=budget, sync=waiting_for(device))
    return per_token(compared, seconds, batch[0].numel())


def training_bytes(compared: Models, seq_len: int, device: str, *, tokens: int = TOKENS) -> Samples:
    """Bytes a token that forward and backward pass on a batch of `tokens` need at most, gradients included."""
    batch = random_batch(tokens // seq_len, seq_len, device)
    peaks = []
    for model in compared.values():
        model.train().zero_grad()
        peaks.append([float(peak_memory(partial(forward_backward, model, batch), device))])
        model.zero_grad()
    return per_token(compared, peaks, batch[0].numel())


def forward_backward(model: LanguageModel, batch: Batch) -> None:
    """Loss and gradients."""
    model.loss(batch).backward()


def decoding_seconds(
    streams: Mapping[str, Stream], seq_len: int, device: str, *, repeats: int, budget: float = BUDGET
) -> Samples:
    """Seconds a token of the DECODED after `seq_len`; the streams read on up to there, so lengths must rise."""
    for stream in streams.values():
        stream.skip(seq_len - stream.position)
    forks: dict[str, Stream] = {}

    def prepare() -> None:
        forks.update({name: stream.fork(1 + DECODED) for name, stream in streams.items()})
        for fork in forks.values():
            fork.read(1)  # a cache that is just full makes room now, which is rare

    reads = [lambda name=name: forks[name].read(DECODED) for name in streams]
    seconds = in_turn(reads, repeats, warmup=1, budget=budget, prepare=prepare, sync=waiting_for(device))
    return per_token(streams, seconds, DECODED * next(iter(streams.values())).batch_size)


def per_token(names: Iterable[str], values: Iterable[Iterable[float]], tokens: int) -> Samples:
    """Each model's values, divided by the number of tokens they are for."""
    return {name: [value / tokens for value in of_one] for name, of_one in zip(names, values, strict=True)}


def claimed_target(quantity: Quantity, model: LanguageModel, seq_lens: Sequence[int]) -> float | None:
    """The exponent of the FLOPs that the model itself counts, and SLACK; None where no exponent can be fitted."""
    claimed = quantity.exponent(seq_lens, [model.flops_per_token(seq_len) for seq_len in seq_lens])
    return None if claimed is None else claimed + SLACK


def values_of(name: str, samples: Mapping[int, Samples]) -> tuple[tuple[float, ...], ...]:
    """A model's values at each length, one a round."""
    return tuple(tuple(of_all[name]) for of_all in samples.values())


def curves(quantity: Quantity, compared: Models, samples: Mapping[int, Samples], timed: bool = True) -> list[Curve]:
    """A curve for each model out of the samples at each length; only times have a target."""
    seq_lens = tuple(samples)
    return [
        Curve(
            quantity, name, BASELINE, seq_lens, values_of(name, samples), values_of(BASELINE, samples),
            claimed_target(quantity, model, seq_lens) if timed else None,
        )
        for name, model in compared.items()
    ]  # fmt: skip


def mixers(
    repeats: int,
    device: str,
    *,
    names: Sequence[str] | None = None,
    seq_lens: Sequence[int] = SEQ_LENS,
    tokens: int = TOKENS,
    budget: float = BUDGET,
    tell: Tell = nothing,
) -> list[Curve]:
    """Curves of training time, peak memory and decoding time of the models with these names; `tell` hears of it."""
    compared = build(chosen_models(names), device)
    training: dict[int, Samples] = {}
    memory: dict[int, Samples] = {}
    decoding: dict[int, Samples] = {}
    for T in seq_lens:
        tell(f"training steps at T = {T:,}")
        training[T] = training_seconds(compared, T, device, tokens=tokens, repeats=repeats, budget=budget)
        memory[T] = training_bytes(compared, T, device, tokens=tokens)
    streams = {name: Stream(model, device) for name, model in compared.items()}
    for T in seq_lens:
        tell(f"decoding at T = {T:,}")
        decoding[T] = decoding_seconds(streams, T, device, repeats=repeats, budget=budget)
    return [
        *curves(TRAINING, compared, training),
        *curves(DECODING, compared, decoding),
        *curves(MEMORY, compared, memory, timed=False),
    ]
