"""The peak of memory that a piece of work takes, counted by PyTorch itself.

On a GPU the allocator keeps the figure. On a CPU nobody does, but the profiler reports each allocation and each release
of a tensor's memory, temporaries inside kernels included: added up in order, their highest sum is the peak. Libraries
that take memory past PyTorch (oneDNN's scratch space) are not seen, nor is the release of what is older than the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch.autograd.profiler import profile

MEMORY_EVENT = "[memory]"


def highest_sum(changes: Iterable[int]) -> int:
    """The highest that a sum gets as `changes` are added one by one; 0 if it never rises."""
    return max(accumulate(changes, initial=0))


@contextmanager
def no_native_stderr() -> Iterator[None]:
    """Silence what compiled code writes to standard error past Python, as the profiler does at start and stop."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def peak_memory_cpu(work: Callable[[], object]) -> int:
    """`peak_memory` on a CPU, by replaying what was allocated and released."""
    with no_native_stderr(), profile(profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.kineto_results.events() if event.name() == MEMORY_EVENT]
    return highest_sum(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))


def peak_memory_cuda(work: Callable[[], object]) -> int:
    """`peak_memory` on a GPU, as its allocator counts."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_memory(work: Callable[[], object], device: str) -> int:
    """Bytes of tensors alive at once at most while `work` runs, beyond those that were there before."""
    return peak_memory_cuda(work) if device == "cuda" else peak_memory_cpu(work)
