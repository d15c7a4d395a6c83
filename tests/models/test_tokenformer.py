"""Pattention against its formula, and its growth: exactness, gradients, optimizer state."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TokenFormer
from models.growth import carry_state, update_scale
from models.tokenformer import NORMALIZATIONS, Pattention, l2_norm_gelu, l2_norm_gelu_reference

EXPERIMENTS = Path(__file__).resolve().parents[2] / "app" / "configs" / "experiment"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 17]))
@settings(max_examples=25)
def test_l2_norm_gelu_equals_its_formula_in_values_and_gradients(seed, n):
    scores = torch.randn(3, 5, n, dtype=torch.float64, generator=generator(seed), requires_grad=True)
    weights = torch.randn(3, 5, n, dtype=torch.float64, generator=generator(seed + 1))
    tau = torch.tensor(1.7, dtype=torch.float64)
    fast, slow = l2_norm_gelu(scores, tau), l2_norm_gelu_reference(scores, tau)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad((y * weights).sum(), scores)[0] for y in (fast, slow)]
    torch.testing.assert_close(*gradients)


def test_l2_norm_gelu_of_zeros_is_zero_with_finite_gradient():
    scores = torch.zeros(2, 4, requires_grad=True)
    l2_norm_gelu(scores, torch.tensor(2.0)).sum().backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pattention_is_attention_over_parameter_tokens(normalization):
    layer = Pattention(4, 6, 9, normalization).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    tau = math.sqrt(9)
    for row, output in zip(x, layer(x), strict=True):
        scores = torch.stack([row @ key for key in layer.key_param_tokens])
        weights = {
            "l2_norm_gelu": lambda s: F.gelu(tau * s / s.norm()),
            "gelu_l2_norm": lambda s: tau * F.gelu(s) / F.gelu(s).norm(),
            "gelu": F.gelu,
            "softmax": lambda s: 9 * s.exp() / s.exp().sum(),
        }[normalization](scores)
        expected = sum(w * value for w, value in zip(weights, layer.value_param_tokens, strict=True))
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


def relative_change(layer, size, init, tau):
    x = torch.randn(64, layer.key_param_tokens.size(1), generator=generator(5))
    before = layer(x).detach()
    list(layer.grow(size, init, tau, generator(1)))
    return ((layer(x) - before).norm() / before.norm()).item()


@pytest.mark.parametrize("normalization", ["l2_norm_gelu", "gelu_l2_norm", "gelu"])
@given(n=st.integers(1, 40), extra=st.integers(1, 80), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_zero_keys_with_frozen_tau_keep_the_function(normalization, n, extra, seed):
    torch.manual_seed(seed)
    layer = Pattention(8, 8, n, normalization)
    assert relative_change(layer, n + extra, "zero_keys", "frozen") < 1e-6
    assert layer.num_param_tokens == n + extra


@pytest.mark.parametrize(
    ("normalization", "init", "tau", "low"),
    [
        ("l2_norm_gelu", "zero_keys", "sqrt_n", 0.3),
        ("l2_norm_gelu", "random", "frozen", 0.3),
        ("l2_norm_gelu", "random", "sqrt_n", 0.3),
        ("l2_norm_gelu", "zero_values", "frozen", 0.2),
        ("l2_norm_gelu", "zeros", "sqrt_n", 0.3),
        ("softmax", "zero_keys", "frozen", 0.1),
    ],
)
def test_other_ways_to_grow_change_the_function(normalization, init, tau, low):
    assert relative_change(Pattention(32, 32, 48, normalization), 128, init, tau) > low


def test_new_rows_get_gradient_and_move_old_ones_stay():
    layer = Pattention(8, 8, 10)
    old = layer.value_param_tokens.detach().clone()
    list(layer.grow(16, "zero_keys", "frozen", generator()))
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
    list(layer.grow(16, "zeros", "frozen", generator()))
    layer(torch.randn(20, 8)).square().sum().backward()
    assert layer.key_param_tokens.grad[10:].abs().max() == 0
    assert layer.value_param_tokens.grad[10:].abs().max() == 0


def grown_adam(carry):
    old = torch.nn.Parameter(torch.randn(3, 2))
    other = torch.nn.Parameter(torch.randn(2))
    optimizer = torch.optim.AdamW([{"params": [old]}, {"params": [other]}])
    (old.square().sum() + other.sum()).backward()
    optimizer.step()
    moments = {k: v.clone() for k, v in optimizer.state[old].items()}
    new = torch.nn.Parameter(torch.cat((old.detach(), torch.ones(4, 2))))
    carry_state(optimizer, old, new, carry)
    assert optimizer.param_groups[0]["params"] == [new]
    assert optimizer.param_groups[1]["params"] == [other]
    assert old not in optimizer.state
    return moments, optimizer.state.get(new, {})


@pytest.mark.parametrize("carry", ["per_row", "zeros", "mean"])
def test_moments_move_along_padded(carry):
    before, after = grown_adam(carry)
    assert after["step"] == before["step"]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][:3], before[name])
    assert after["exp_avg"][3:].abs().max() == 0
    expected = before["exp_avg_sq"].mean(0).expand(4, 2) if carry == "mean" else torch.zeros(4, 2)
    assert torch.equal(after["exp_avg_sq"][3:], expected)


def test_reset_drops_the_state():
    assert grown_adam("reset")[1] == {}


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


def test_a_grown_checkpoint_loads_into_the_first_size_and_back():
    small, big = (TokenFormer(vocab_size=7, d_model=16, num_param_tokens=n, num_ffn_param_tokens=12) for n in (3, 5))
    tokens = torch.randint(7, (2, 6))
    first = {k: v.clone() for k, v in small.state_dict().items()}
    expected_small, expected_big = small(tokens), big(tokens)
    small.load_state_dict(big.state_dict())
    assert torch.equal(small(tokens), expected_big)
    assert small.parameter_token_sizes() == {"num_param_tokens": 5, "num_ffn_param_tokens": 12}
    small.load_state_dict(first)
    assert torch.equal(small(tokens), expected_small)


def test_growing_a_model_is_exact_repeatable_and_on_record():
    logits, models = [], [TokenFormer(vocab_size=7, d_model=16, num_layers=2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(7, (3, 20))
    before = models[0](tokens)
    for model in models:
        event = model.grow({"num_param_tokens": 100, "num_ffn_param_tokens": 700}, None, step=5)
        logits.append(model(tokens))
        assert event["logit_change"] <= 1e-6
        assert event["from"] == {"num_param_tokens": 64, "num_ffn_param_tokens": 512}
        assert model.hparams.num_param_tokens == 100
    assert (logits[0] - before).abs().max() <= 1e-6
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    other = TokenFormer(vocab_size=7, d_model=16, num_layers=2)
    other.seed = 1
    other.grow({"num_param_tokens": 100}, None, step=5)
    assert not torch.equal(
        other.layers[0].query.value_param_tokens[64:], models[0].layers[0].query.value_param_tokens[64:]
    )


def test_growth_refuses_to_shrink_and_unknown_groups():
    model = TokenFormer(vocab_size=7, d_model=16)
    with pytest.raises(ValueError, match="--num_param_tokens 3 would shrink"):
        model.grow({"num_param_tokens": 3}, None, step=0)
    with pytest.raises(ValueError, match="no such parameter tokens"):
        model.grow({"num_slots": 3}, None, step=0)


def paper_sizes():
    """(options of the model, millions of parameters in the paper) along the experiment files of the paper's path."""
    first, grown, last = (
        yaml.safe_load((EXPERIMENTS / f"paper_{name}.yaml").read_text()) for name in ("124m", "grow_757m", "1400m")
    )
    assert grown["model"] == first["model"]
    options = first["model"]["init_args"]
    growth = zip(grown["growth"]["num_param_tokens"], grown["growth"]["num_ffn_param_tokens"], strict=True)
    stages = [options | {"num_param_tokens": n, "num_ffn_param_tokens": m} for n, m in growth]
    return list(zip([options, *stages, last["model"]["init_args"]], (124, 354, 757, 1400), strict=True))


@pytest.mark.parametrize(("options", "millions"), paper_sizes())
def test_the_papers_path_has_the_papers_parameter_counts(options, millions):
    with torch.device("meta"):
        model = TokenFormer(vocab_size=50_304, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert round(model.num_parameters() / 1e6) == pytest.approx(millions, abs=1)
