"""Sums by chunks against the plain loop: values, gradients, and the type they are kept in."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from models.scan import cumulative_sum, cumulative_sum_reference, decayed_sum, decayed_sum_reference


@given(length=st.integers(1, 150), chunk_size=st.integers(1, 70), seed=st.integers(0, 99))
@example(length=1, chunk_size=64, seed=0)
@example(length=128, chunk_size=64, seed=0)
@example(length=129, chunk_size=64, seed=0)
@example(length=63, chunk_size=64, seed=0)
def test_sums_by_chunks_equal_the_loop_in_values_and_gradients(length, chunk_size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weights = (torch.randn(2, length, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    x.requires_grad_()
    results = [
        (y, *torch.autograd.grad((y * weights).sum(), x))
        for y in (cumulative_sum(x, chunk_size), cumulative_sum_reference(x))
    ]
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@given(length=st.integers(1, 150), chunk_size=st.integers(1, 70), seed=st.integers(0, 99))
@example(length=128, chunk_size=64, seed=0)
@example(length=150, chunk_size=1, seed=0)
def test_sums_that_decay_equal_the_loop_in_values_and_gradients(length, chunk_size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weights = (torch.randn(2, length, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    log_decay = torch.tensor([-1e-3, -0.7, -900.0], dtype=torch.float64)  # the last would overflow in float64
    inputs = x.requires_grad_(), log_decay.requires_grad_()
    results = [
        (y, *torch.autograd.grad((y * weights).sum() + 0 * log_decay.sum(), inputs))
        for y in (decayed_sum(x, log_decay, chunk_size), decayed_sum_reference(x, log_decay))
    ]
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_summed_in_float32(autocast):
    x = torch.randn(1, 3000, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = cumulative_sum(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), x.double().cumsum(1), rtol=0, atol=1e-4)
    y[:, -1].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_long_sums_stay_close_to_float64_where_a_float32_loop_does_not():
    x = torch.randn(1, 65_536, 8)
    exact = x.double().cumsum(1)
    assert (cumulative_sum(x) - exact).abs().max() < 1e-4
    assert (cumulative_sum_reference(x) - exact).abs().max() > 1e-4
    upstream = torch.randn(1, 65_536, 8)
    (gradient,) = torch.autograd.grad(cumulative_sum(x.requires_grad_()), x, upstream)
    assert (gradient - upstream.double().flip(1).cumsum(1).flip(1)).abs().max() < 1e-4
