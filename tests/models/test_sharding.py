"""A model is sharded, made whole, changed and sharded again, here over a mesh of this process alone."""

import copy
import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from models import TokenFormer
from models.optim import Optim, build_optimizer
from models.sharding import Sharding, gathered, hand_over

TOKENS = torch.arange(24).view(2, 12) % 11
BATCH = (TOKENS, TOKENS.roll(-1, 1))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("mesh") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def build():
    torch.manual_seed(0)
    model = TokenFormer(
        vocab_size=11, d_model=8, num_heads=2, num_layers=2, num_param_tokens=3, num_ffn_param_tokens=5,
        local_mixing="conv", tie_embeddings=True,
    )  # fmt: skip
    return model, build_optimizer(model, Optim(learning_rate=0.1), fused=False)


def shard(model, mesh):
    return Sharding(model, list(model.layers), ("forward", "prefill", "step", "loss", "evaluate"), mesh)


def hand_over_sharded(model, optimizer, mesh):
    whole = list(model.parameters())
    sharding = shard(model, mesh)
    hand_over(optimizer, dict(zip(whole, model.parameters(), strict=True)))
    return sharding


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(BATCH).backward()
        optimizer.step()


def deepen(model, optimizer):
    """Append a copy of the last layer and let the optimizer know, as growth in depth does."""
    model.layers.append(copy.deepcopy(model.layers[-1]))
    optimizer.param_groups[0]["params"] += [p for p in model.layers[-1].parameters() if p.ndim == 2]


def test_a_model_that_is_made_whole_grows_and_is_sharded_again_is_as_one_that_never_was(mesh):
    (model, optimizer), (twin, twin_optimizer) = build(), build()
    sharding = hand_over_sharded(model, optimizer, mesh)
    train(model, optimizer)
    hand_over(optimizer, sharding.undo())
    deepen(model, optimizer)
    hand_over_sharded(model, optimizer, mesh)
    assert all(isinstance(layer, FSDPModule) for layer in model.layers)
    assert all(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    train(model, optimizer)
    train(twin, twin_optimizer)
    deepen(twin, twin_optimizer)
    train(twin, twin_optimizer)
    torch.testing.assert_close(model(TOKENS), twin(TOKENS))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(gathered(model.state_dict()[name]), value)
    for ours, theirs in zip(optimizer.param_groups, twin_optimizer.param_groups, strict=True):
        for p, q in zip(ours["params"], theirs["params"], strict=True):
            moment = optimizer.state[p]["exp_avg_sq"]
            torch.testing.assert_close(moment.full_tensor(), twin_optimizer.state[q]["exp_avg_sq"])


def test_a_model_that_is_made_whole_is_as_before(mesh):
    model, _ = build()
    before, logits = copy.deepcopy(model.state_dict()), model(TOKENS)
    sharding = shard(model, mesh)
    model.loss(BATCH).backward()
    sharding.undo()
    assert model.embed.weight is model.head.weight
    assert {type(module).__name__ for module in model.modules()} == {
        type(module).__name__ for module in build()[0].modules()
    }
    assert all(type(p) is nn.Parameter and p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model).loss(BATCH), model.loss(BATCH), rtol=0, atol=0)


def test_nothing_of_the_shards_is_kept(mesh):
    model, optimizer = build()
    sharding = hand_over_sharded(model, optimizer, mesh)
    train(model, optimizer)
    shards = [weakref.ref(p) for p in model.parameters()]
    hand_over(optimizer, sharding.undo())
    del sharding
    gc.collect()
    assert [ref() for ref in shards] == [None] * len(shards)


def test_a_parameter_of_the_model_itself_is_refused(mesh):
    model, _ = build()
    model.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"TokenFormer holds scale itself; put each into an nn\.Module"):
        shard(model, mesh)
