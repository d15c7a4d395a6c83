"""Palm: cumulative attention against its formulas, blocks that share their weights, factors."""

import pytest
import torch

from models import Palm
from models.palm import attention_free, attention_on_detail, mixing_reference

MIXINGS = {
    "detail": lambda q, k, v: attention_on_detail(q, k, v)[0],
    "aft": lambda q, k, v: attention_free(q, k, v, bound=4.0)[0],
}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("length", [1, 7, 130])
def test_mixing_equals_its_reference_in_values_and_gradients(mixing, length):
    torch.manual_seed(0)
    inputs, upstream = [random(2, length, 6) for _ in range(3)], torch.randn(2, length, 6, dtype=torch.float64)
    results = []
    for output in (MIXINGS[mixing](*inputs), mixing_reference(*inputs, mixing=mixing)):
        results.append((output, *torch.autograd.grad((output * upstream).sum(), inputs)))  # noqa: PERF401
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)


def test_aft_is_stable_where_keys_are_extreme_and_sequences_long():
    q, v = torch.zeros(1, 100_000, 1), torch.ones(1, 100_000, 1)
    for key in (-40.0, 40.0):
        y, *_ = attention_free(q, torch.full_like(q, key), v, bound=40.0)
        torch.testing.assert_close(y, torch.full_like(y, 0.5), rtol=1e-5, atol=0)  # sigmoid(0) times a mean of ones
    late = torch.full_like(q, -40.0)
    late[:, 50_000] = 40.0
    v[:, 50_000] = 3.0
    y, *_ = attention_free(q, late, v, bound=40.0)
    torch.testing.assert_close(y[0, [49_999, 50_000, 99_999], 0], torch.tensor([0.5, 1.5, 1.5]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("recursion", "order"), [("all", [0, 1, 0, 1, 0, 1]), ("each", [0, 0, 0, 1, 1, 1])])
def test_blocks_are_applied_in_order_with_shared_weights(recursion, order):
    options = {"vocab_size": 5, "d_model": 8, "num_heads": 2, "rank": 3, "embedding_rank": 3}
    model = Palm(num_layers=2, num_recursions=3, recursion=recursion, **options)
    assert model.depth() == [model.layers[i] for i in order]
    once = Palm(num_layers=2, num_recursions=1, **options)
    assert model.num_parameters() == once.num_parameters()
    head = 2 * 8 * 5 + 2 * 8 * 3
    assert model.flops_per_token(9) - head == 3 * (once.flops_per_token(9) - head)
    assert model.state_bytes(9) == 3 * once.state_bytes(9)
    unrolled = Palm(num_layers=6, num_recursions=1, **options)  # the same function, with weights of its own
    unrolled.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith("layers.")}
        | {
            f"layers.{i}.{key}": value
            for i, at in enumerate(order)
            for key, value in model.layers[at].state_dict().items()
        }
    )
    tokens = torch.randint(5, (2, 9))
    torch.testing.assert_close(model(tokens), unrolled(tokens), rtol=0, atol=1e-6)


def test_factors_hold_the_parameters_they_should():
    def count(**options):
        return Palm(vocab_size=100, d_model=32, num_heads=2, num_recursions=1, **options).num_parameters()

    full = count(rank=None, embedding_rank=None)
    assert count(rank=None, embedding_rank=None, qkv_ratio=4) - full == 3 * 5 * 32 * 32
    assert full - count(rank=None, embedding_rank=None, output_rank=4) == 2 * (32 * 32 - 4 * (32 + 32))
    assert full - count(rank=None, embedding_rank=None, head_rank=4) == 100 * 32 - 4 * (100 + 32)
    assert count(tie_embeddings=True) == count() - 100 * 32  # both factors are shared
    assert full - count(rank=4, embedding_rank=None) == 3 * (32 * 32 - 2 * 4 * 32)
    assert full - count(rank=None, embedding_rank=8) == 100 * 32 - 8 * (100 + 32)


def test_a_head_has_factors_of_its_own_or_those_of_the_embedding():
    options = {"vocab_size": 20, "d_model": 16, "num_heads": 2, "embedding_rank": 5}
    own, tied = Palm(head_rank=3, **options), Palm(tie_embeddings=True, **options)
    assert own.head.weight.shape == (20, 3)
    assert tied.head.weight is tied.embed.weight
    assert tied.head.up is tied.embed.up
    with pytest.raises(ValueError, match="--model.head_rank 3 has no use with --model.tie_embeddings true"):
        Palm(head_rank=3, tie_embeddings=True, **options)


@pytest.mark.parametrize("option", ["qkv_ratio", "output_rank", "head_rank"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"--model.{option} is 0; it must be at least 1"):
        Palm(vocab_size=5, **{option: 0})
