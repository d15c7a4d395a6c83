"""What is timed: training steps and steps of a stream, on random tokens, without Lightning around them.

Shapes: B batch, T time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from app.benchmark.timing import nothing
from models.base import Batch, LanguageModel
from models.layers import with_fixed_shapes
from models.optim import build_optimizer, lr_scale

VOCAB_SIZE = 128  # of random tokens, as many as a text in ASCII can have
CLIP = 1.0
TOTAL_STEPS = 10_000  # of a schedule whose length does not matter


def waiting_for(device: str) -> Callable[[], None]:
    """What waits until all work given to the device is done."""
    return torch.cuda.synchronize if device == "cuda" else nothing


def random_batch(batch_size: int, seq_len: int, device: str) -> Batch:
    """Random tokens: (inputs, targets), each (batch_size, seq_len)."""
    tokens_BT = torch.randint(VOCAB_SIZE, (batch_size, seq_len + 1), device=device)
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()


def bare_training(model: LanguageModel, total_steps: int = TOTAL_STEPS) -> tuple[Callable[[Batch], None], Optimizer]:
    """A training step without Lightning that does to `model` just what the Trainer would; and its optimizer."""
    optimizer = build_optimizer(model, model.optim)
    scheduler = LambdaLR(optimizer, lambda step: lr_scale(step, total_steps, model.optim))

    def step(batch: Batch) -> None:
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()

    return step, optimizer


class Stream:
    """A model that reads random tokens one by one, each step from the state that the last one left.

    Args:
        model: The model, which is put into evaluation mode.
        device: Where it is.
        batch_size: Sequences, which are read side by side.
        compiled: Let forks read by a compiled step.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, device: str, batch_size: int = 1, compiled: bool = False) -> None:
        self.model, self.batch_size, self.compiled = model.eval(), batch_size, compiled
        self.step, self.state = model.step, model.init_state(batch_size)
        self.step_of_forks = model.compiled_step() if compiled else model.step
        self.tokens = torch.randint(VOCAB_SIZE, (1024, batch_size), device=device).unbind()  # read over and over
        self.position = 0

    @torch.no_grad()
    def read(self, count: int) -> None:
        """Read `count` more tokens."""
        for position in range(self.position, self.position + count):
            _, self.state = self.step(self.tokens[position % len(self.tokens)], self.state)
        self.position += count

    @torch.no_grad()
    def skip(self, count: int) -> None:
        """Read `count` more tokens at once, the time of which is of no interest."""
        positions = range(self.position, self.position + count)
        if positions:
            tokens_BT = torch.stack([self.tokens[position % len(self.tokens)] for position in positions], 1)
            _, self.state = self.model.prefill(tokens_BT, self.state)
        self.position += count

    def fork(self, room: int = 0) -> Stream:
        """Another stream at the same place; reading it leaves this one as it is.

        With a compiled step it can read `room` more tokens.
        """
        other = copy.copy(self)
        other.step, other.state = self.step_of_forks, copy.deepcopy(self.state)
        if self.compiled:
            other.state = with_fixed_shapes(other.state, self.position + room)
        return other
