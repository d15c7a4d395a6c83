"""What a device computes, held against what the CPU does: gradients, in two precisions, and the streaming form.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import models
from app.benchmark.inference import compiled_anew
from app.benchmark.workloads import VOCAB_SIZE
from app.gpu.checks import Check, at_most
from models.base import Batch, LanguageModel

PART = "equality"
SIZES = {"d_model": 128, "num_layers": 2}
BATCH_SIZE, SEQ_LEN, PREFILLED = 4, 256, 200
LETTERS = 16  # of the vocabulary that occur, so that contexts come again
SEED = 1
GRADIENT_BAR = 1e-3  # relative distance in float32: the two add up in different orders
# 1 - cosine in bfloat16, of 8 bits. SparseRNN's is about 0.04: rounding lets other levels be attended to.
DIRECTION_BAR = 0.1
LOGIT_BAR = 1e-3  # greatest distance, of logits of about 1


def equality(names: tuple[str, ...], device: str, compile: bool) -> Iterator[Check]:
    """Three checks a model: its gradients in float32 and as they are trained fast, and streaming against parallel."""
    for name in names:
        torch.manual_seed(SEED)
        model = build(name)
        tokens_BT = torch.randint(LETTERS, (BATCH_SIZE, SEQ_LEN + 1))
        batch = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        wanted = gradient(model, batch)
        moved = copy.deepcopy(model).to(device)
        batch_there = batch[0].to(device), batch[1].to(device)
        distance = float((gradient(moved, batch_there) - wanted).norm() / wanted.norm())
        yield at_most(PART, f"{name}: gradient, float32, relative distance to the CPU's", distance, GRADIENT_BAR)
        yield fast_training(model, batch_there, wanted, device, compile)
        yield at_most(
            PART, f"{name}: logits, prompt and steps against parallel", apart(moved, batch_there[0]), LOGIT_BAR
        )


def build(name: str, compile: bool = False) -> LanguageModel:
    """A small model that might be compiled, on the CPU."""
    model: LanguageModel = getattr(models, name)(vocab_size=VOCAB_SIZE, compile=compile, **SIZES)
    return model


def gradient(model: LanguageModel, batch: Batch) -> Tensor:
    """The gradient of the loss, of all parameters in a row: float64, on the CPU."""
    model.zero_grad()
    model.loss(batch).backward()
    return torch.cat([p.grad.detach().cpu().double().flatten() for p in model.parameters() if p.grad is not None])


def fast_training(model: LanguageModel, batch: Batch, wanted: Tensor, device: str, compile: bool) -> Check:
    """The direction of the gradient in bf16-mixed, compiled if so wished, against that of the CPU in float32."""
    what = f"{type(model).__name__}: gradient, bf16-mixed{', compiled' * compile}, 1 - cosine to the CPU's in float32"
    twin = build(type(model).__name__, compile)
    twin.load_state_dict(model.state_dict())
    try:
        twin.configure_model()  # which compiles
        with compiled_anew(), torch.autocast(device, torch.bfloat16):
            found = gradient(twin.to(device), batch)
    except Exception as error:  # of the compiler, of which there are many kinds: the other checks go on
        return Check(PART, what, f"{type(error).__name__}: {str(error).splitlines()[0]}", "no error", False)
    return at_most(PART, what, 1 - float(F.cosine_similarity(found, wanted, dim=0)), DIRECTION_BAR)


@torch.no_grad()
def apart(model: LanguageModel, tokens_BT: Tensor) -> float:
    """The greatest distance of logits between the parallel form and a prompt that is read, then step by step."""
    parallel_BTV = model.eval()(tokens_BT)
    logits_BV, state = model.prefill(tokens_BT[:, :PREFILLED], model.init_state(len(tokens_BT)))
    distances = [(logits_BV - parallel_BTV[:, PREFILLED - 1]).abs().max()]
    for t in range(PREFILLED, tokens_BT.size(1)):
        logits_BV, state = model.step(tokens_BT[:, t], state)
        distances.append((logits_BV - parallel_BTV[:, t]).abs().max())
    return float(torch.stack(distances).max())
