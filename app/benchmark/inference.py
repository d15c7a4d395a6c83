"""Measure generation: reading a prompt at once and writing token by token, against the one-layer Transformer.

Each model is taken whole, at its defaults, with a small vocabulary, for one sequence and for a batch, at several
contexts. A prompt is read by `prefill` from nothing, which is set against the same model's forward pass, too. Decoding
reads its context once, and each round goes on from there by itself, a position behind: at contexts of 2^n a cache that
is just full would make room in every round. A step may be compiled as well, as `stream(compile=True)` has it: on a
cache with room for all that is to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from app.benchmark.mixers import Models, Samples, build, chosen_models, curves, decoding_seconds, per_token, values_of
from app.benchmark.results import Curve, Quantity
from app.benchmark.timing import in_turn, nothing
from app.benchmark.workloads import VOCAB_SIZE, Stream, waiting_for
from app.output.progress import Tell
from models.base import LanguageModel

FORWARD = "the model's own forward pass"
CONTEXTS = (64, 256, 1024, 4096)  # 16,384 takes many times as long, so it is left to who asks for it
BATCH_SIZES = (1, 16)
SECONDS = 10.0  # for the rounds at one context, except that there are a few at least


def prefilling(batch_size: int) -> Quantity:
    """Time of a prompt's tokens."""
    title, name = f"Reading a prompt of T tokens, batch {batch_size}", f"inference.prefill.batch_{batch_size}"
    return Quantity(name, title, "µs a token", "time of a prompt", 1e6, power=1)


def against_forward(batch_size: int) -> Quantity:
    """The same, to be set against the parallel form, which leaves no state and has logits of all positions."""
    title, name = f"Reading a prompt, batch {batch_size}", f"inference.prefill_to_forward.batch_{batch_size}"
    return Quantity(name, title, "µs a token", "time of a prompt", 1e6, power=1)


def decoding(batch_size: int, compiled: bool) -> Quantity:
    """Time of a token that is written."""
    mode, suffix = ("compiled", "_compiled") if compiled else ("eager", "")
    title = f"Writing after T tokens, batch {batch_size}, {mode}"
    name = f"inference.decoding{suffix}.batch_{batch_size}"
    return Quantity(name, title, "µs a token", "time of a token", 1e6, power=0)


@torch.no_grad()
def read_prompt(model: LanguageModel, prompt_BT: Tensor) -> None:
    """Read a prompt into an empty state."""
    model.prefill(prompt_BT, model.init_state(len(prompt_BT)))


@torch.no_grad()
def reading_seconds(
    compared: Models, seq_len: int, device: str, *, batch_size: int, repeats: int, budget: float = SECONDS
) -> tuple[Samples, Samples]:
    """Seconds a token of reading prompts of `seq_len` tokens, by `prefill`, and by `forward` in the same rounds."""
    prompt_BT = torch.randint(VOCAB_SIZE, (batch_size, seq_len), device=device)
    models = [model.eval() for model in compared.values()]
    works = [partial(read_prompt, model, prompt_BT) for model in models]
    works += [partial(model, prompt_BT) for model in models]
    seconds = in_turn(works, repeats, warmup=1, budget=budget, sync=waiting_for(device))
    prefills, forwards = seconds[: len(models)], seconds[len(models) :]
    return per_token(compared, prefills, prompt_BT.numel()), per_token(compared, forwards, prompt_BT.numel())


def own_curves(quantity: Quantity, prefills: Mapping[int, Samples], forwards: Mapping[int, Samples]) -> list[Curve]:
    """A curve for each model, the baseline of which is its own forward pass."""
    names = next(iter(prefills.values()))
    return [
        Curve(quantity, name, FORWARD, tuple(prefills), values_of(name, prefills), values_of(name, forwards))
        for name in names
    ]


@contextmanager
def compiled_anew() -> Iterator[None]:
    """Forget what was compiled before and after, as there is a limit to how often a function is compiled."""
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


def inference(
    repeats: int,
    device: str,
    *,
    names: Sequence[str] | None = None,
    seq_lens: Sequence[int] = CONTEXTS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    compile: bool = False,
    budget: float = SECONDS,
    tell: Tell = nothing,
) -> list[Curve]:
    """Curves, without targets, of the time of reading and of writing, for the models with these names.

    `tell` hears of it.
    """
    compared = build(chosen_models(names), device)
    found: list[Curve] = []
    often = {"repeats": repeats, "budget": budget}
    for batch_size in batch_sizes:
        prefills: dict[int, Samples] = {}
        forwards: dict[int, Samples] = {}
        for T in seq_lens:
            tell(f"reading {batch_size} x {T:,} tokens")
            prefills[T], forwards[T] = reading_seconds(compared, T, device, batch_size=batch_size, **often)
        found += curves(prefilling(batch_size), compared, prefills, timed=False)
        found += own_curves(against_forward(batch_size), prefills, forwards)
        for compiled in (False, True) if compile else (False,):
            streams = {name: Stream(model, device, batch_size, compiled) for name, model in compared.items()}
            writing: dict[int, Samples] = {}
            for T in seq_lens:
                tell(f"writing after {batch_size} x {T:,} tokens{', compiled' if compiled else ''}")
                with compiled_anew():
                    writing[T] = decoding_seconds(streams, T, device, **often)
            found += curves(decoding(batch_size, compiled), compared, writing, timed=False)
    return found
