"""What a model costs as sequences get longer, beside the baseline: time and memory of a sequence, speed, a long stream.

The exponents are of one sequence alone: in a batch of equal tokens longer sequences leave fewer of them side by side,
which a loop over time pays for though its work is linear. The ratios of speed are of such batches, as one trains.
Everything is timed in turn with the baseline; a stream has no pair, so it is set against its own first tenth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.utils._pytree import tree_leaves

from app.benchmark.mixers import DECODING, MEMORY, TRAINING, Models, Samples, Tell, decoding_seconds, training_bytes
from app.benchmark.mixers import training_seconds as step_seconds
from app.benchmark.results import FIT_FROM, Quantity
from app.benchmark.timing import Clock, Ratio
from app.benchmark.workloads import Stream
from app.scorecard.operations import Probed
from models.base import LanguageModel

SEGMENTS = 100  # of a stream, each timed
TENTH = SEGMENTS // 10
MAX_TENSOR = 1 << 29  # numbers; a length whose largest tensor would have more is left out


@dataclass(frozen=True)
class Timing:
    """How long and how often a scorecard times.

    Attributes:
        seq_lens: Lengths T, in order.
        tokens: Tokens in a training batch.
        repeats: Rounds at most.
        seconds: For the rounds at one length, except that there are a few at least.
        stream_tokens: Length of the stream.
        stream_seconds: After which it is broken off.
    """

    seq_lens: tuple[int, ...]
    tokens: int
    repeats: int
    seconds: float
    stream_tokens: int
    stream_seconds: float


@dataclass(frozen=True)
class Costs:
    """A model's costs and the baseline's, (ours, theirs); an exponent is None where too few lengths were measured."""

    seq_lens: tuple[int, ...]
    training: tuple[float, ...]
    decoding: tuple[float, ...]
    time_exponents: tuple[float | None, float | None]
    memory_exponents: tuple[float | None, float | None]
    decoding_exponents: tuple[float | None, float | None]


@dataclass(frozen=True)
class Streamed:
    """How a stream went.

    Attributes:
        tokens: Read before it was over or broken off.
        wanted: To be read.
        slowdown: Time of a token in the last tenth that was read over that in the first; None if there is no second.
        state_bytes: Bytes of the state after the first tenth, and at the end.
    """

    tokens: int
    wanted: int
    slowdown: float | None
    state_bytes: tuple[int, int]


def affordable(seq_lens: Sequence[int], probed: Probed, tokens: int) -> tuple[int, ...]:
    """The lengths at which the largest tensor of a batch, as it grew when probed, fits into memory."""
    longest, largest = probed.tensor_lengths[-1], probed.largest[-1]

    def numbers(seq_len: int) -> float:
        return float(tokens / seq_len * largest * (seq_len / longest) ** probed.tensor_exponent)

    return tuple(seq_len for seq_len in seq_lens if numbers(seq_len) <= MAX_TENSOR)


def ratio(samples: Samples) -> float:
    """The median over the rounds of the first one's value over the second's."""
    ours, theirs = samples.values()
    return Ratio.of(ours, theirs).median


def exponents(quantity: Quantity, samples: dict[int, Samples]) -> tuple[float | None, float | None]:
    """The fitted exponents of both, by their least values."""
    names = next(iter(samples.values()))
    ours, theirs = ([min(of_both[name]) for of_both in samples.values()] for name in names)
    return quantity.exponent(tuple(samples), ours), quantity.exponent(tuple(samples), theirs)


def measure_costs(
    model: LanguageModel, baseline: LanguageModel, seq_lens: Sequence[int], timing: Timing, device: str, tell: Tell
) -> Costs:
    """Time and memory at these lengths, one after the other; the machine should have nothing else to do."""
    compared: Models = {"model": model, "baseline": baseline}
    often = partial(step_seconds, compared, device=device, repeats=timing.repeats, budget=timing.seconds)
    batches: dict[int, Samples] = {}
    alone: dict[int, Samples] = {}
    memory: dict[int, Samples] = {}
    decoding: dict[int, Samples] = {}
    for T in seq_lens:
        tell(f"measuring training steps at T = {T:,} ...")
        batches[T] = often(T, tokens=timing.tokens)
        is_alone = timing.tokens // T == 1
        if T >= FIT_FROM:
            alone[T] = batches[T] if is_alone else often(T, tokens=T)
            memory[T] = training_bytes(compared, T, device, tokens=T)
    streams = {name: Stream(of_two, device) for name, of_two in compared.items()}
    for T in seq_lens:
        tell(f"measuring decoding at T = {T:,} ...")
        decoding[T] = decoding_seconds(streams, T, device, repeats=timing.repeats, budget=timing.seconds)
    none = (None, None)
    return Costs(
        tuple(seq_lens),
        tuple(map(ratio, batches.values())),
        tuple(map(ratio, decoding.values())),
        exponents(TRAINING, alone) if alone else none,
        exponents(MEMORY, memory) if memory else none,
        exponents(DECODING, decoding),
    )


def state_size(stream: Stream) -> int:
    """Bytes of all tensors in a stream's state, or those that the model claims, whichever are more."""
    tensors = (leaf for leaf in tree_leaves(stream.state) if isinstance(leaf, Tensor))
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(held, stream.model.state_bytes(stream.position))


def read_stream(stream: Stream, tokens: int, seconds: float, clock: Clock = time.perf_counter) -> Streamed:
    """Read `tokens`, but end early once the state has grown beyond the first tenth's, or after `seconds`."""
    start = clock()
    taken: list[float] = []
    first_bytes = 0
    while len(taken) < SEGMENTS and (len(taken) < 2 or clock() - start < seconds):
        before = clock()
        stream.read(tokens // SEGMENTS)
        taken.append(clock() - before)
        if len(taken) == TENTH:
            first_bytes = state_size(stream)
        if len(taken) > TENTH and len(taken) % TENTH == 0 and state_size(stream) > first_bytes:
            break
    first, last = taken[:TENTH], taken[-TENTH:]
    slowdown = statistics.median(last) / statistics.median(first) if len(taken) >= 2 * TENTH else None
    last_bytes = state_size(stream)
    return Streamed(len(taken) * (tokens // SEGMENTS), tokens, slowdown, (first_bytes or last_bytes, last_bytes))
