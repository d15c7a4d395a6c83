"""Local mixing against its formula, in every model and streaming, and what it makes possible: no positions."""

import inspect
import math

import pytest
import torch

from models import Palm, PotatoLM, SparseRNN, TokenFormer, TrajectoryLM, Transformer
from models.layers import causal_attention, causal_attention_reference
from models.local_mixing import DELAYS, LocalMixing, delayed_sum, delayed_sum_reference

MODELS = (Palm, PotatoLM, SparseRNN, TokenFormer, TrajectoryLM, Transformer)
PLACED = (Palm, PotatoLM, TokenFormer, Transformer)


def build(kind, **options):
    """A narrow model in evaluation mode, of which every part matters."""
    known = inspect.signature(kind).parameters
    small = {"d_model": 12, "num_heads": 2, "state_width": 10, "k": 3, "rank": 3, "embedding_rank": 5, "memory_len": 64}
    model = kind(vocab_size=11, **{name: size for name, size in small.items() if name in known} | options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def mixing(local_mixing, width=6, dtype=torch.float32):
    layer = LocalMixing(width, local_mixing).to(dtype)
    for tap in layer.taps:
        torch.nn.init.normal_(tap, std=0.5)
    return layer


def streamed(module, inputs):
    state, outputs = module.init_state(len(inputs)), []
    for x in inputs.unbind(1):
        y, state = module.step(x, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("delays", [DELAYS["shift"], DELAYS["conv"], (5, 2)])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_the_sum_equals_its_reference_in_values_and_gradients(delays, length):
    x, tap = torch.randn(2, length, 3, dtype=torch.float64), torch.randn(len(delays), 3, dtype=torch.float64)
    inputs = [x.requires_grad_(), tap.requires_grad_()]
    upstream = torch.randn(2, 3, length, dtype=torch.float64).mT  # not contiguous
    results = []
    for function in (delayed_sum, delayed_sum_reference):
        output = function(x, tap, delays)
        gradients = torch.autograd.grad(output, inputs, upstream, allow_unused=True, materialize_grads=True)
        results.append((output, *gradients))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_a_convolution_is_one_of_four_taps_on_top_of_its_input():
    layer, x = mixing("conv"), torch.randn(2, 9, 6)
    taps = torch.stack(list(layer.taps)[::-1], 1).unsqueeze(1)
    expected = x.mT + torch.nn.functional.conv1d(torch.nn.functional.pad(x.mT, (3, 0)), taps, groups=6)
    torch.testing.assert_close(layer(x), expected.mT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("local_mixing", DELAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_step_by_step_is_all_at_once_and_parts_are_the_whole(local_mixing, dtype, autocast):
    layer, x = mixing(local_mixing, dtype=torch.float32 if autocast else dtype), torch.randn(2, 9, 6).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        expected = layer(x)
        assert expected.dtype == dtype
        assert torch.equal(streamed(layer, x), expected)
        assert torch.equal(torch.cat(layer.each(x.split([1, 3, 2], -1), None)[0], -1), expected)


@pytest.mark.parametrize(("local_mixing", "taps", "remembered"), [("none", 0, 0), ("shift", 1, 1), ("conv", 4, 3)])
def test_it_is_the_identity_at_first_and_costs_its_taps(local_mixing, taps, remembered):
    layer, x = LocalMixing(6, local_mixing), torch.randn(2, 9, 6)
    assert torch.equal(layer(x), x)
    assert [tuple(tap.shape) for tap in layer.parameters()] == [(6,)] * taps  # vectors: AdamW's, without decay
    assert layer.flops_per_token() == 2 * 6 * taps
    assert layer.init_state(1).shape == (1, remembered, 6)
    assert (layer.state_bytes(), layer.bfloat16().state_bytes()) == (4 * 6 * remembered, 2 * 6 * remembered)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("local_mixing", DELAYS)
def test_every_model_mixes_locally_in_both_forms_and_looks_at_nothing_later(kind, local_mixing):
    model, tokens = build(kind, num_layers=2, local_mixing=local_mixing), torch.randint(11, (3, 13))
    logits = model(tokens)
    torch.testing.assert_close(streamed(model, tokens), logits, rtol=0, atol=1e-4)
    changed = torch.cat((tokens[:, :7], (tokens[:, 7:] + 1) % 11), 1)
    torch.testing.assert_close(model(changed)[:, :7], logits[:, :7], rtol=0, atol=1e-6)
    model.loss((tokens, changed)).backward()
    taps = [parameter for name, parameter in model.named_parameters() if ".taps." in name]
    assert len(taps) == 2 * len(DELAYS[local_mixing])
    assert all(tap.grad.abs().max() > 0 for tap in taps)


@pytest.mark.parametrize("kind", MODELS)
def test_flops_and_state_of_a_model_count_its_local_mixing(kind):
    plain, mixed = build(kind), build(kind, local_mixing="conv")
    applied = [m for layer in mixed.depth() for m in layer.modules() if isinstance(m, LocalMixing)]
    width = {SparseRNN: 10, PotatoLM: 12, TrajectoryLM: 12}.get(kind, 36)
    assert {m.width for m in applied} == {width}
    assert mixed.flops_per_token(9) - plain.flops_per_token(9) == len(applied) * 2 * 4 * width
    assert mixed.state_bytes(9) - plain.state_bytes(9) == len(applied) * 4 * 3 * width


@pytest.mark.parametrize("kind", PLACED)
def test_without_positions_and_local_mixing_the_past_is_a_set(kind):
    tokens = torch.randint(11, (2, 9))
    shuffled = torch.cat((tokens[:, :8].flip(1), tokens[:, 8:]), 1)
    for options, is_set in (
        ({"positions": "none"}, True),
        ({"positions": "rotary"}, False),
        ({"positions": "none", "local_mixing": "shift"}, False),
    ):
        rest = {Palm: {"num_recursions": 1}, PotatoLM: {"card": "sum"}}.get(kind, {})
        model = build(kind, num_layers=1, **options | rest)
        assert torch.allclose(model(tokens)[:, -1], model(shuffled)[:, -1], rtol=0, atol=1e-5) == is_set


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("base", [None, 10_000.0, 100.0])
def test_attention_with_any_base_or_none_equals_its_reference(num_heads, base):
    q, k, v = (torch.randn(2, 7, 6, dtype=torch.float64) for _ in range(3))
    values = [attend(q, k, v, num_heads, base) for attend in (causal_attention, causal_attention_reference)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)  # angles are float32


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.parametrize("num_heads", [1, 5])
def test_heads_are_from_one_up_and_of_any_width_without_positions(kind, num_heads):
    model, tokens = build(kind, d_model=15, num_heads=num_heads, positions="none"), torch.randint(11, (2, 6))
    torch.testing.assert_close(streamed(model, tokens), model(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "none", "rope_base": 100.0}, "rope_base 100 has no use .*leave it at 10000 or choose"),
        ({"positions": "learned"}, "--model.positions is 'learned'; choose one of rotary, none"),
        ({"local_mixing": "convolution"}, "--model.local_mixing is 'convolution'; choose one of none, shift, conv"),
        (
            {"d_model": 15, "num_heads": 5, "positions": "rotary"},
            "--model.d_model 15 .*must be a multiple of (2|10), .*or --model.positions none",
        ),
        ({"rope_base": 0.0}, "--model.rope_base"),
    ],
)
def test_options_that_do_not_go_together_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(vocab_size=5, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_can_share_its_embedding_with_its_head(kind):
    torch.manual_seed(0)
    tied, untied = (kind(vocab_size=50, tie_embeddings=tie) for tie in (True, False))
    assert tied.head.weight is tied.embed.weight
    assert untied.num_parameters() - tied.num_parameters() == 50 * 128
    tokens = torch.randint(50, (4, 33))
    loss = tied.loss((tokens[:, :-1], tokens[:, 1:]))
    assert abs(loss.item() - math.log(50)) < 0.3  # a token's own logit is the largest
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in tied.embed.parameters())


def test_a_tied_head_of_a_factorised_embedding_is_its_product():
    model, tokens = build(Palm, tie_embeddings=True), torch.randint(11, (2, 6))
    table_VD = model.embed(torch.arange(11))
    torch.testing.assert_close(model(tokens), model.features(tokens) @ table_VD.mT)
    assert build(Palm).flops_per_token(9) - model.flops_per_token(9) == 2 * (12 * 11 - 5 * (12 + 11))


def test_growth_keeps_the_function_beside_local_mixing():
    model, tokens = build(TokenFormer, local_mixing="conv", tie_embeddings=True), torch.randint(11, (2, 9))
    before, taps = model(tokens), list(model.layers[0].local_mixing.taps)
    model.grow({"num_param_tokens": 100, "num_ffn_param_tokens": 700}, None, step=5)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)
    assert all(new is old for new, old in zip(model.layers[0].local_mixing.taps, taps, strict=True))
