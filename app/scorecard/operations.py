"""What a forward pass dispatches: how many operations, the largest tensor, and any product over pairs of positions.

PyTorch shows each operation that it dispatches to a `TorchDispatchMode`, those inside hand-written autograd functions
included: a loop over time shows as a count that grows with T, attention as an output with two axes of time, whatever
its name. A fused attention kernel hides its T x T scores, so it counts as a product over pairs by its own name.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.benchmark.timing import fitted_exponent
from app.benchmark.workloads import random_batch
from models.base import Batch, LanguageModel

FUSED_ATTENTION = "attention"  # part of the names of such kernels
MIN_PAIR_LENGTH = 128
COUNT_LENGTHS = (64, 256, 1024, 4096)
TENSOR_LENGTHS = (1024, 2048, 4096)  # shorter ones have weights among the largest


class Watch(TorchDispatchMode):
    """Counts operations, and keeps the largest output and what has two axes of at least `pair_length`.

    Args:
        pair_length: T of the sequence, where a pair of positions is looked for.
    """

    def __init__(self, pair_length: float = math.inf) -> None:
        super().__init__()
        self.pair_length = pair_length
        self.operations, self.largest = 0, 0
        self.pairs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation, and take note of it."""
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations += 1
        self.largest = max([self.largest, *(output.numel() for output in outputs)])
        if FUSED_ATTENTION in func.name() or any(self.is_over_pairs(output) for output in outputs):
            self.pairs.append(f"{func.name().removeprefix('aten::')} {tuple(outputs[0].shape) if outputs else ()}")
        return result

    def is_over_pairs(self, output: Tensor) -> bool:
        """Whether two axes are as long as time; padding makes them longer, never shorter."""
        return sum(size >= self.pair_length for size in output.shape) > 1


@dataclass(frozen=True)
class Probed:
    """What forward passes of one sequence showed.

    Attributes:
        lengths: Lengths T of `counts`.
        counts: Operations, of inference and of the training loss, whichever are more, at each length.
        tensor_lengths: Lengths T of `largest`.
        largest: Numbers in the largest tensor at each length.
        pair_length: The T at which products over pairs were looked for.
        pairs: Those found, each once.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    tensor_lengths: tuple[int, ...]
    largest: tuple[int, ...]
    pair_length: int
    pairs: tuple[str, ...]

    @property
    def operations_a_doubling(self) -> float:
        """More operations for each doubling of T between the shortest and the longest length."""
        return (self.counts[-1] - self.counts[0]) / math.log2(self.lengths[-1] / self.lengths[0])

    @property
    def tensor_exponent(self) -> float:
        """The x of `largest ~ T^x`."""
        return fitted_exponent(self.tensor_lengths, self.largest)


def watched(work: Callable[[], object], pair_length: float = math.inf) -> Watch:
    """What `work` dispatches."""
    with Watch(pair_length) as watch:
        work()
    return watch


def forwards(model: LanguageModel, batch: Batch) -> tuple[Callable[[], object], Callable[[], object]]:
    """Inference on a batch, and its loss in training mode with the graph for the backward pass."""

    def infer() -> None:
        with torch.no_grad():
            model.eval()(batch[0])

    return infer, lambda: model.train().loss(batch)


def watch_forwards(model: LanguageModel, seq_len: int, device: str, find_pairs: bool = False) -> list[Watch]:
    """What both forward passes of one random sequence dispatch."""
    batch = random_batch(1, seq_len, device)
    return [watched(work, seq_len if find_pairs else math.inf) for work in forwards(model, batch)]


def is_prime(number: int) -> bool:
    """Whether only 1 and itself divide it."""
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def telling_length(model: LanguageModel) -> int:
    """A length larger than any axis of the parameters, and prime: an axis as long as that is time."""
    length = 1 + max([MIN_PAIR_LENGTH, *(size for p in model.parameters() for size in p.shape)])
    while not is_prime(length):
        length += 1
    return length


def probe(
    model: LanguageModel,
    device: str,
    lengths: Sequence[int] = COUNT_LENGTHS,
    tensor_lengths: Sequence[int] = TENSOR_LENGTHS,
) -> Probed:
    """Count, measure and look for pairs in forward passes of one sequence of a model that reads random tokens."""
    seen = {T: watch_forwards(model, T, device) for T in sorted({*lengths, *tensor_lengths})}
    pair_length = telling_length(model)
    pairs = [pair for watch in watch_forwards(model, pair_length, device, find_pairs=True) for pair in watch.pairs]
    return Probed(
        tuple(lengths),
        tuple(max(watch.operations for watch in seen[T]) for T in lengths),
        tuple(tensor_lengths),
        tuple(max(watch.largest for watch in seen[T]) for T in tensor_lengths),
        pair_length,
        tuple(dict.fromkeys(pairs)),
    )
