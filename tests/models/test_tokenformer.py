"""Pattention against its formula, and the paper's sizes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TokenFormer
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
