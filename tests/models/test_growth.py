"""Growth: exactness for every way that promises it, gradients, what becomes of the optimizer's state, checkpoints."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models import TokenFormer
from models.carry import Replaced, carry_state, update_scale, young_rows
from models.growth import GrowthRules, split_values
from models.optim import Optim, build_optimizer
from models.tokenformer import NORMALIZATIONS, Pattention

ZERO_KEYS = GrowthRules("zero_keys", tau="frozen")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grown(layer, size, rules=None, seed=1):
    """What a layer's growth replaced."""
    return list(layer.grow(size, rules or GrowthRules(), generator(seed)))


# Rows -----------------------------------------------------------------------------------------------------------------


def relative_change(layer, size, rules):
    x = torch.randn(64, layer.key_param_tokens.size(1), generator=generator(5))
    before = layer(x).detach()
    grown(layer, size, rules)
    return ((layer(x) - before).norm() / before.norm()).item()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(n=st.integers(4, 40), copies=st.integers(2, 5), seed=st.integers(0, 99), noise=st.sampled_from([0.1, 1.0, 3.0]))
@settings(max_examples=10)
def test_split_rows_keep_the_function_and_the_root_of_the_size(normalization, n, copies, seed, noise):
    torch.manual_seed(seed)
    layer = Pattention(8, 8, n, normalization)
    assert relative_change(layer, copies * n, GrowthRules(split_noise=noise)) < 3e-6
    assert layer.num_param_tokens == copies * n
    assert float(layer.tau) == pytest.approx(math.sqrt(copies * n))


@pytest.mark.parametrize("normalization", ["l2_norm_gelu", "gelu_l2_norm", "gelu"])
@given(n=st.integers(4, 40), extra=st.integers(1, 80), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_zero_keys_and_the_remainder_of_a_split_keep_the_function(normalization, n, extra, seed):
    for rules in (ZERO_KEYS, GrowthRules()):
        torch.manual_seed(seed)
        layer = Pattention(8, 8, n, normalization)
        assert relative_change(layer, n + extra, rules) < 3e-6
        assert layer.num_param_tokens == n + extra


def test_bfloat16_changes_by_its_rounding_only():
    layer = Pattention(32, 32, 48).bfloat16()
    x = torch.randn(64, 32, generator=generator()).bfloat16()
    exact = layer.float()(x.float())
    rounding = (layer.bfloat16()(x).float() - exact).norm()
    grown(layer, 96)
    assert (layer(x).float() - exact).norm() < 3 * rounding


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_split_values_add_up_and_their_noise_has_the_size_asked_for(copies):
    old = torch.randn(300, 20, generator=generator()) * 3
    parts = split_values(old, copies, 0.7, generator(1)).view(copies, 300, 20)
    torch.testing.assert_close(parts.sum(0), old, rtol=1e-5, atol=1e-5)
    noise = (parts - old / copies).square().mean((1, 2)).sqrt() / old.square().mean().sqrt()
    assert noise.tolist() == pytest.approx([0.7] * copies, rel=0.05)
    if copies == 2:
        torch.testing.assert_close(parts[0] - old / 2, old / 2 - parts[1])


def test_copies_have_equal_keys_and_part_with_the_first_step():
    layer = Pattention(8, 8, 10)
    keys = layer.key_param_tokens.detach().clone()
    grown(layer, 20)
    assert torch.equal(layer.key_param_tokens, torch.cat((keys, keys)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(2):
        layer.zero_grad()
        layer(torch.randn(20, 8, generator=generator(step))).square().sum().backward()
        first, second = layer.key_param_tokens.grad.chunk(2)
        assert (first - second).abs().min() > 0
        first, second = layer.value_param_tokens.grad.chunk(2)
        assert bool((first - second).abs().max() > 1e-6) == bool(step)  # equal scores, until the keys have moved
        optimizer.step()


@pytest.mark.parametrize(
    ("normalization", "rules", "low"),
    [
        ("l2_norm_gelu", GrowthRules("zero_keys"), 0.3),
        ("l2_norm_gelu", GrowthRules("random", tau="frozen"), 0.3),
        ("l2_norm_gelu", GrowthRules("random"), 0.3),
        ("l2_norm_gelu", GrowthRules("fresh"), 0.3),
        ("l2_norm_gelu", GrowthRules("zero_values", tau="frozen"), 0.2),
        ("l2_norm_gelu", GrowthRules("zeros"), 0.3),
        ("softmax", ZERO_KEYS, 0.1),
    ],
)
def test_other_ways_to_grow_change_the_function(normalization, rules, low):
    assert relative_change(Pattention(32, 32, 48, normalization), 128, rules) > low


def test_fresh_rows_are_those_of_a_new_layer_whatever_the_old_ones_have_become():
    layer = Pattention(64, 64, 100)
    with torch.no_grad():
        layer.key_param_tokens.mul_(9)
        layer.value_param_tokens.mul_(9)
    grown(layer, 400, GrowthRules("fresh"))
    assert float(layer.key_param_tokens.detach()[100:].std()) == pytest.approx(64**-0.5, rel=0.03)
    assert float(layer.value_param_tokens.detach()[100:].std()) == pytest.approx(400**-0.5, rel=0.03)
    assert float(layer.tau) == 20


def test_new_rows_get_gradient_and_move_old_ones_stay():
    layer = Pattention(8, 8, 10)
    old = layer.value_param_tokens.detach().clone()
    grown(layer, 16, ZERO_KEYS)
    assert torch.equal(layer.value_param_tokens[:10], old)
    layer(torch.randn(20, 8)).square().sum().backward()
    assert layer.key_param_tokens.grad[10:].abs().min() > 0
    assert layer.value_param_tokens.grad[10:].abs().max() == 0  # its scores are zero until the keys have moved
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer.zero_grad()
    layer(torch.randn(20, 8)).square().sum().backward()
    assert layer.value_param_tokens.grad[10:].abs().max() > 0


def test_all_zero_rows_never_learn():
    layer = Pattention(8, 8, 10)
    grown(layer, 16, GrowthRules("zeros", tau="frozen"))
    layer(torch.randn(20, 8)).square().sum().backward()
    assert layer.key_param_tokens.grad[10:].abs().max() == 0
    assert layer.value_param_tokens.grad[10:].abs().max() == 0


# The optimizer's state ------------------------------------------------------------------------------------------------


def carried(carry, copies=1, gradient=1.0, size=7):
    """Moments of three rows before, and of seven after."""
    old = torch.nn.Parameter(torch.randn(3, 2))
    other = torch.nn.Parameter(torch.randn(2))
    optimizer = torch.optim.AdamW([{"params": [old]}, {"params": [other]}])
    (old.square().sum() + other.sum()).backward()
    optimizer.step()
    moments = {k: v.clone() for k, v in optimizer.state[old].items()}
    new = torch.nn.Parameter(torch.randn(size, 2))
    carry_state(optimizer, Replaced(old, new, copies, gradient), carry)
    assert optimizer.param_groups[0]["params"] == [new]
    assert optimizer.param_groups[1]["params"] == [other]
    assert old not in optimizer.state
    return moments, optimizer.state.get(new, {})


@pytest.mark.parametrize("carry", ["per_row", "zeros", "mean"])
def test_moments_move_along_padded(carry):
    before, after = carried(carry)
    assert after["step"] == before["step"]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][:3], before[name])
    assert after["exp_avg"][3:].abs().max() == 0
    expected = before["exp_avg_sq"].mean(0).expand(4, 2) if carry == "mean" else torch.zeros(4, 2)
    assert torch.equal(after["exp_avg_sq"][3:], expected)


@pytest.mark.parametrize("carry", ["per_row", "asymmetric"])
def test_copies_have_the_moments_that_their_gradients_would_have_made(carry):
    before, after = carried(carry, copies=2, gradient=0.5)
    second = 0.0 if carry == "asymmetric" else 1.0
    for name, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
        rows = (before[name] * factor, before[name] * factor * second, torch.zeros(1, 2))
        assert torch.equal(after[name], torch.cat(rows))


def test_reset_drops_the_state():
    assert carried("reset")[1] == {}


def test_the_gradients_of_copies_are_the_parts_that_their_moments_are_divided_by():
    """Without noise a layer's copies are one row: the gradients of a key's copies are its parts, those of values it."""
    torch.manual_seed(0)
    one, two = Pattention(8, 8, 6), Pattention(8, 8, 12)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        two.key_param_tokens, two.value_param_tokens = (
            torch.nn.Parameter(torch.cat((p, p)) * factor)
            for p, factor in ((one.key_param_tokens, 1), (one.value_param_tokens, 0.5))
        )
    two.tau.mul_(2**0.5)
    for layer in (one, two):
        layer(torch.randn(50, 8, generator=generator())).pow(3).sum().backward()
    for p, q, factor in zip(one.parameters(), two.parameters(), (0.5, 1.0), strict=True):
        torch.testing.assert_close(q.grad, torch.cat((p.grad, p.grad)) * factor, rtol=1e-4, atol=1e-4)


def test_update_scale_makes_an_old_optimizer_treat_new_rows_as_a_new_one_would():
    betas, lr = (0.9, 0.99), 0.1
    gradients = [torch.randn(5, dtype=torch.float64, generator=generator(i)) for i in range(60)]
    old, young = (torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)) for _ in range(2))
    optimizer = torch.optim.Adam([old], lr=lr, betas=betas, eps=0)
    reference = torch.optim.Adam([young], lr=lr, betas=betas, eps=0)
    old.grad = torch.ones(5, dtype=torch.float64)
    for _ in range(40):
        optimizer.step()
    optimizer.state[old]["exp_avg"].zero_()
    optimizer.state[old]["exp_avg_sq"].zero_()
    old.data.zero_()
    event = {"carry": "per_row", "rewarm_steps": 0}
    for age, gradient in enumerate(gradients, 1):
        before = old.detach().clone()
        old.grad, young.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        old.data.copy_(torch.lerp(before, old.detach(), update_scale(age, 40 + age, betas, event)))
        torch.testing.assert_close(old, young)


def test_rewarm_rises_to_one():
    event = {"carry": "zeros", "rewarm_steps": 4}
    assert [update_scale(age, 9, (0.9, 0.99), event) for age in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("carry", ["per_row", "asymmetric"])
def test_young_rows_are_followed_through_later_splits(carry):
    """Against marks that are copied along with the rows."""
    sizes, events, marks = [3, 7, 8, 25], [], ["old"] * 3
    for number, (before, after) in enumerate(pairwise(sizes)):
        copies = after // before
        events.append({"from": {"g": before}, "to": {"g": after}, "copies": {"g": copies}, "carry": carry})
        others = [number] * before if carry == "asymmetric" else marks
        marks = marks + others * (copies - 1) + [number] * (after - copies * before)
    for number in range(3):
        young = {row for rows in young_rows(events, number, "g") for row in range(25)[rows]}
        assert young == {row for row, mark in enumerate(marks) if mark == number}


# Models ---------------------------------------------------------------------------------------------------------------

SMALL = {
    "Transformer": {"num_heads": 2, "local_mixing": "conv"},
    "TokenFormer": {"num_heads": 2, "num_param_tokens": 8, "num_ffn_param_tokens": 12},
    "PotatoLM": {"num_heads": 2, "positions": "rotary"},
    "Palm": {"num_heads": 2, "rank": 4, "output_rank": 4, "embedding_rank": 4, "head_rank": 4},
    "SparseRNN": {"state_width": 8, "k": 3},
    "TrajectoryLM": {"memory_len": 64},
}


def small(name, num_layers=1, **changes):
    torch.manual_seed(0)
    model = getattr(models, name)(vocab_size=7, d_model=16, num_layers=num_layers, **SMALL[name] | changes)
    with torch.no_grad():
        for p in model.parameters():  # nothing quiet, as after training
            p.add_(torch.randn(p.shape, generator=generator(p.numel())) * 0.1)
    return model.eval()


@pytest.mark.parametrize("num_layers", [1, 6])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_split_models_keep_their_logits(normalization, num_layers):
    """In float32 within its rounding, which grows with the layers; in float64 whatever the weights are."""
    torch.manual_seed(0)
    options = {"num_layers": num_layers, "num_param_tokens": 8, "num_ffn_param_tokens": 12, "num_heads": 2}
    new = TokenFormer(vocab_size=7, d_model=32, normalization=normalization, **options)
    loud = small("TokenFormer", num_layers, normalization=normalization).double()
    tokens = torch.randint(7, (3, 20), generator=generator())
    for model, rounding in ((new, 1e-6 if num_layers == 1 else 5e-6), (loud, 1e-10)):
        before = model(tokens)
        event = model.grow({"num_param_tokens": 16, "num_ffn_param_tokens": 36}, None, step=5)
        assert (model(tokens) - before).abs().max() <= rounding
        assert event["logit_change"] <= rounding
    assert event["copies"] == {"num_param_tokens": 2, "num_ffn_param_tokens": 3}


def test_growing_a_model_is_repeatable_and_on_record():
    pair = [TokenFormer(vocab_size=7, d_model=16, num_layers=2) for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    for model in pair:
        event = model.grow({"num_param_tokens": 100, "num_ffn_param_tokens": 1100}, None, step=5)
        assert event["logit_change"] <= 1e-6
        assert event["from"] == {"num_param_tokens": 64, "num_ffn_param_tokens": 512, "num_layers": 2}
        assert model.hparams.num_param_tokens == 100
    for a, b in zip(*(model.parameters() for model in pair), strict=True):
        assert torch.equal(a, b)
    other = TokenFormer(vocab_size=7, d_model=16, num_layers=2)
    other.seed = 1
    other.grow({"num_param_tokens": 100}, None, step=5)
    assert not torch.equal(
        other.layers[0].query.value_param_tokens[64:], pair[0].layers[0].query.value_param_tokens[64:]
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("layer_init", ["stack", "exact"])
def test_every_model_grows_in_depth(name, layer_init):
    model, tokens = small(name, 2), torch.randint(7, (2, 12), generator=generator())
    optimizer = build_optimizer(model, Optim(optimizer="muon"))
    model.train()
    model.loss((tokens, tokens)).backward()
    optimizer.step()
    model.eval()
    blocks, before = model.blocks(), model(tokens).detach()
    event = model.grow({"num_layers": 5}, optimizer, step=1, rules=GrowthRules(layer_init=layer_init))
    assert model.blocks()[:2] == blocks
    assert model.hparams.num_layers == event["to"]["num_layers"] == 5
    change = float((model(tokens).detach() - before).abs().max())
    assert change <= 1e-6 if layer_init == "exact" else change > 1e-3
    assert event["logit_change"] <= 1e-6 if layer_init == "exact" else event["logit_change"] > 1e-3

    for number, source in enumerate((0, 1, 0), start=2):
        block = model.blocks()[number]
        for (part, p), old in zip(block.named_parameters(), blocks[source].parameters(), strict=True):
            is_zero = layer_init == "exact" and part in block.outputs
            assert torch.equal(p, torch.zeros_like(old) if is_zero else old)
            assert all(torch.equal(optimizer.state[p][key], value) for key, value in optimizer.state[old].items())
    deep = build_optimizer(model, Optim(optimizer="muon"))
    for group, expected in zip(optimizer.param_groups, deep.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]

    state, outputs = model.init_state(2), []
    for token in tokens.unbind(1):
        logits, state = model.step(token, state)
        outputs.append(logits)
    torch.testing.assert_close(torch.stack(outputs, 1), model(tokens), rtol=1e-4, atol=1e-4)

    model.train()
    model.loss((tokens, tokens)).backward()
    if layer_init == "exact":
        added = dict(model.blocks()[-1].named_parameters())
        assert all(added[part].grad.abs().max() > 0 for part in model.blocks()[-1].outputs)


@pytest.mark.parametrize("name", SMALL)
def test_a_grown_checkpoint_loads_into_the_first_size_and_back(name):
    first, deep, tokens = small(name), small(name, 3), torch.randint(7, (2, 6), generator=generator())
    saved = {key: value.clone() for key, value in first.state_dict().items()}
    expected, expected_deep = first(tokens), deep(tokens)
    first.load_state_dict(deep.state_dict())
    assert torch.equal(first(tokens), expected_deep)
    assert first.growing_sizes()["num_layers"] == 3
    first.load_state_dict(saved)
    assert torch.equal(first(tokens), expected)


def test_grown_parameter_tokens_load_into_the_first_size_and_back():
    first, big = (TokenFormer(vocab_size=7, d_model=16, num_param_tokens=n, num_ffn_param_tokens=12) for n in (3, 5))
    tokens = torch.randint(7, (2, 6))
    saved = {k: v.clone() for k, v in first.state_dict().items()}
    expected, expected_big = first(tokens), big(tokens)
    first.load_state_dict(big.state_dict())
    assert torch.equal(first(tokens), expected_big)
    assert first.parameter_token_sizes() == {"num_param_tokens": 5, "num_ffn_param_tokens": 12}
    first.load_state_dict(saved)
    assert torch.equal(first(tokens), expected)


def test_growth_refuses_to_shrink_and_unknown_groups():
    model = TokenFormer(vocab_size=7, d_model=16)
    with pytest.raises(ValueError, match="--num_param_tokens 3 would shrink"):
        model.grow({"num_param_tokens": 3}, None, step=0)
    with pytest.raises(ValueError, match="--num_slots: the model has none to grow"):
        model.grow({"num_slots": 3}, None, step=0)
    with pytest.raises(ValueError, match="num_layers 1e\\+09 is too much"):
        model.grow({"num_layers": 10**9}, None, step=0)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"init": "halve"}, "--init"),
        ({"split_noise": 0.0}, "--split_noise is 0.0; it must be above 0"),
        ({"rewarm_steps": -1}, "--rewarm_steps is -1"),
        ({"tau": "ramped", "rewarm_steps": 0}, "--rewarm_steps is 0; it must be above 0"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules, says):
    with pytest.raises(ValueError, match=says):
        GrowthRules(**rules).check()


def test_exact_layers_need_blocks_that_say_their_outputs():
    model = small("Transformer")
    model.layers[0].__class__ = type("Block", (type(model.layers[0]),), {"outputs": property()})
    with pytest.raises(ValueError, match="do not say by `outputs`"):
        model.grow({"num_layers": 2}, None, step=0, rules=GrowthRules(layer_init="exact"))
    assert len(model.layers) == 1
