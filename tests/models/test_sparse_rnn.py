"""SparseRNN: attention over the state, the scan and its gradients by hand against the formulas and autograd."""

import pytest
import torch

from models import SparseRNN
from models.layers import rms_norm
from models.sparse_rnn.model import SparseRecurrence, scan_reference
from models.sparse_rnn.scan import Attend, attend, rows_gradient

VARIANTS = ["inhibited", "plain", "literal", "dense"]


def recurrence(variant="inhibited", bptt_window=None, state_width=12, k=4):
    torch.manual_seed(0)
    return SparseRecurrence(state_width, k, variant, bptt_window).double()


def drives(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.mark.parametrize("args", [[[0, 3, 2], [1, 5, 4]], [[2, 2, 0], [5, 5, 5]]], ids=["distinct", "repeated"])
def test_attend_copies_forward_and_adds_backward(args):
    x, args = drives(2, 6), torch.tensor(args)
    assert torch.equal(attend(x, args), torch.stack([row[i] for row, i in zip(x, args, strict=True)]))
    assert torch.autograd.gradcheck(Attend.apply, (x, args))
    (gradient,) = torch.autograd.grad(attend(x, args).sum(), x)
    assert gradient.tolist() == [[row.tolist().count(i) for i in range(6)] for row in args]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("length", "window"), [(1, None), (10, None), (10, 3), (10, 5)])
def test_scan_equals_its_reference_in_values_and_gradients(variant, length, window):
    layer, drive = recurrence(variant, window), drives(3, length, 12)
    upstream = torch.randn(3, length, 12, dtype=torch.float64)
    results = [
        (output, *torch.autograd.grad((output * upstream).sum(), [drive, *layer.parameters()]))
        for output in (layer(drive), scan_reference(layer, drive))
    ]
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_only_attended_rows_are_touched():
    layer, drive = recurrence(), drives(1, 1, 12)
    before = layer(drive)
    (gradient,) = torch.autograd.grad(before.sum(), layer.rows)
    touched = gradient.abs().sum(1) > 0
    assert torch.equal(touched.nonzero().squeeze(1), rms_norm(layer.start).topk(4).indices.sort().values)
    layer.rows.data[~touched] = torch.nan
    assert torch.equal(layer(drive), before)


def test_a_literal_row_belongs_to_a_rank_whichever_level_has_it():
    layer, drive, order = recurrence("literal"), drives(1, 12), torch.randperm(12)
    assert layer.rows.shape == (4, 12)
    x, b = layer.init_state(1)
    expected, _ = layer.step(drive, (x, b))
    layer.rows.data = layer.rows.data[:, order]  # what is added moves along with the levels; its rows stay
    moved, _ = layer.step(drive[:, order], (x[:, order], b[:, order]))
    torch.testing.assert_close(moved, expected[:, order])


def test_the_gradient_of_the_rows_adds_up_where_they_were_attended():
    args = torch.tensor([[[0, 2]], [[2, 3]], [[2, 2]]])  # three steps, one sequence, two levels each
    weights, dpre = drives(3, 1, 2).detach(), drives(3, 1, 4).detach()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for t in range(3):
        for j in range(2):
            expected[args[t, 0, j]] += weights[t, 0, j] * dpre[t, 0]
    torch.testing.assert_close(rows_gradient(args, weights, dpre, torch.zeros(4, 4)), expected)


def test_no_gradient_crosses_a_window_and_values_do_not_change():
    drive = drives(2, 9, 12)
    whole, cut = recurrence()(drive), recurrence(bptt_window=3)(drive)
    assert torch.equal(whole, cut)
    (gradient,) = torch.autograd.grad(cut[:, 5].sum(), drive)
    assert gradient[:, :3].abs().max() == 0
    assert gradient[:, 3:6].abs().amin(dim=(0, 2)).min() > 0
    (gradient,) = torch.autograd.grad(recurrence()(drive)[:, 5].sum(), drive)
    assert gradient[:, 0].abs().max() > 0


def test_inhibition_turns_attention_elsewhere_and_stays_bounded():
    layer = recurrence()
    layer.rule_out.data[1] = 0
    layer.rule_out.data[1, 0], layer.rule_in.data[0], layer.rule_bias.data[0] = 5.0, 0.0, 10.0  # f = 5 - b / 2
    state = layer.init_state(1)
    first = (state[0] - state[1]).topk(4).indices
    state = layer.step(torch.zeros(1, 12, dtype=torch.float64), state)
    assert not set(first[0].tolist()) & set((state[0] - state[1]).topk(4).indices[0].tolist())
    for _ in range(1000):
        state = layer.step(torch.zeros(1, 12, dtype=torch.float64), state)
    assert state[1].max() <= 10 + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 300}, "--model.k 300 .*--model.state_width 256"),
        ({"k": 0}, "--model.k is 0"),
        ({"bptt_window": 0}, "--model.bptt_window is 0"),
        ({"variant": "sparse"}, "--model.variant"),
        ({"state_width": 0}, "--model.state_width is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparseRNN(vocab_size=5, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["mixed", "true"])
def test_the_state_is_kept_in_float32_in_both_forms_under_bfloat16(variant, precision):
    layer, drive = recurrence(variant).float(), drives(2, 40, 12).detach().bfloat16()
    expected = layer(drive.float())
    layer = layer.bfloat16() if precision == "true" else layer
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        parallel, state, streamed = layer(drive), layer.init_state(2), []
        for drive_BM in drive.unbind(1):
            state = layer.step(drive_BM, state)
            streamed.append(state[0])
        parallel.sum().backward()
    assert parallel.dtype == state[0].dtype == torch.float32
    assert all(parameter.grad is not None for parameter in layer.parameters())
    torch.testing.assert_close(torch.stack(streamed, 1), parallel, rtol=0, atol=1e-5)
    if precision == "mixed":
        assert torch.equal(parallel, expected)


def test_streaming_equals_parallel_after_ten_thousand_steps_and_ties_fall_alike():
    layer, drive = recurrence(), drives(2, 10_000, 12).detach().round(decimals=1)  # many levels alike at first
    layer.start.data.fill_(1.0)
    with torch.no_grad():
        parallel, state = layer(drive), layer.init_state(2)
        for drive_BM in drive.unbind(1):
            state = layer.step(drive_BM, state)
        assert torch.equal(layer(drive), parallel)
    torch.testing.assert_close(state[0], parallel[:, -1], rtol=0, atol=1e-9)
