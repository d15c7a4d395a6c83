"""TrajectoryLM: links and recall against their references, what coincides and what does not, the bounded table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TrajectoryLM
from models.trajectory.coincidence import (
    PRIME,
    Links,
    bit_values,
    coincidences,
    coincidences_reference,
    context_addresses,
    reactivations,
    recall,
    recall_reference,
    symbol_addresses,
)
from models.trajectory.model import MAX_SPAN, TrajectoryMemory

SPANS = (1, 2, 3, 5, 8)


def addresses(symbols_BTH, spans=SPANS):
    """Contexts of given symbols, as if the symbols had 20 bits."""
    bits = symbols_BTH.unsqueeze(-1) >> torch.arange(20) & 1
    return context_addresses(symbol_addresses(bits.double() - 0.5, bit_values(bits.size(-1))), spans)


def memory(d_model=8, num_heads=2, **options):
    """A memory of which every part matters, in float64."""
    torch.manual_seed(1)
    layer = TrajectoryMemory(d_model, num_heads, **{"bits": 4} | options).double().eval()
    for p in layer.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return layer


@settings(max_examples=40, deadline=None)
@given(
    symbols=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    num_slots=st.sampled_from([None, 1, 3, 64]),
    num_matches=st.integers(1, 4),
    rows=st.integers(1, 2),
    heads=st.integers(1, 2),
)
def test_links_are_those_of_all_pairs(symbols, num_slots, num_matches, rows, heads):
    symbols_BTH = torch.stack([torch.tensor(symbols).roll(i) for i in range(rows * heads)], -1)
    address = addresses(symbols_BTH.view(-1, rows, heads).transpose(0, 1), (1, 2, 3))
    for found, expected in zip(
        coincidences(address, num_slots, num_matches),
        coincidences_reference(address, num_slots, num_matches),
        strict=True,
    ):
        assert torch.equal(found, expected)


@given(symbols=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=40), span=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_an_address_is_the_polynomial_of_the_last_symbols(symbols, span):
    address = addresses(torch.tensor(symbols).view(1, -1, 1), (span,))[0, :, 0, 0].tolist()
    first = addresses(torch.tensor(symbols).view(1, -1, 1), (1,))[0, :, 0, 0].tolist()
    for t, found in enumerate(address):
        last = first[max(0, t - span + 1) : t + 1][::-1]
        assert found == sum(a * pow(1_566_083_941, i, PRIME) for i, a in enumerate(last)) % PRIME


@given(st.lists(st.integers(0, 2), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_contexts_coincide_just_where_all_their_symbols_do(symbols):
    address = addresses(torch.tensor(symbols).view(1, -1, 1))[0, :, 0]
    padded = [None] * max(SPANS) + symbols
    for i, span in enumerate(SPANS):
        context = [tuple(padded[t + max(SPANS) + 1 - span : t + max(SPANS) + 1]) for t in range(len(symbols))]
        for t in range(len(symbols)):
            same = [context[s] == context[t] for s in range(len(symbols))]
            assert (address[:, i] == address[t, i]).tolist() == same


def test_recall_equals_its_reference_in_values_and_gradients():
    torch.manual_seed(0)
    B, T, H, K = 2, 12, 2, 2
    address = addresses(torch.randint(3, (B, T, H)), (1, 2))
    links = Links(
        *(
            torch.cat(pair, 1)
            for pair in zip(coincidences(address, 8, K), reactivations(torch.tensor([[1, 5], [11, 3]]), T), strict=True)
        )
    )
    inputs = [torch.randn(B * T * H, width, dtype=torch.float64) for width in (1 + 2 * K + 1, 5, 3)]
    inputs = [x.requires_grad_() for x in inputs]
    weights, results = torch.randn(B * T * H, 3, dtype=torch.float64), []
    for function in (recall, recall_reference):
        output = function(*inputs, links, H, 3.0)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)
    assert all(x.abs().sum() > 0 for x in results[0])


def test_links_to_the_future_are_the_links_to_the_past_reversed():
    links = reactivations(torch.tensor([[2, 9], [1, 3]]), 9)
    forth = {(m, n) for n, m in enumerate(links.earlier[:, 0].tolist()) if m >= 0}
    assert forth == {(m, n) for m, n in enumerate(links.later[:, 0].tolist()) if n >= 0}
    assert len(forth) == 7 + 0 + 8 + 6


@settings(max_examples=25, deadline=None)
@given(length=st.integers(2, 20), padding=st.integers(1, 9), data=st.data())
def test_a_row_depends_on_its_own_past_alone(length, padding, data):
    layer = memory(num_slots=data.draw(st.sampled_from([None, 4, 512])))
    kinds = torch.randn(3, 8, dtype=torch.float64)
    x = kinds[torch.randint(3, (2, length))]
    expected = layer(x)
    padded = torch.cat((x, kinds[torch.randint(3, (2, padding))]), 1)
    torch.testing.assert_close(layer(padded)[:, :length], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[1:]), expected[1:], rtol=0, atol=1e-12)


def test_a_key_recalls_its_value_and_order_matters():
    layer = memory(d_model=16, num_heads=1, bits=12, num_doublings=0, spans=(1, 2))
    torch.nn.init.zeros_(layer.select.weight)
    torch.nn.init.eye_(layer.out.weight)
    layer.select.bias.data = torch.tensor([0.0, 20.0, 20.0, 40.0, 40.0], dtype=torch.float64)  # the longer one counts
    a, b, c, d, e, f = torch.randn(6, 16, dtype=torch.float64)

    def recalled(*sequence):
        return layer(torch.stack(sequence)[None])[0, -1]

    torch.testing.assert_close(recalled(a, b, c, a), b, rtol=0, atol=1e-3)  # key to value,
    torch.testing.assert_close(recalled(a, b, c, b), c, rtol=0, atol=1e-3)  # never back
    pairs = (a, b, c, f, b, a, d, f, a, d, e, f, c, b, e, f)
    torch.testing.assert_close(recalled(*pairs, a, b), c, rtol=0, atol=1e-3)
    torch.testing.assert_close(recalled(*pairs, b, a), d, rtol=0, atol=1e-3)


def test_the_longest_match_is_preferred_from_the_start():
    layer = TrajectoryMemory(16, 2)
    prefer = layer.select.bias.view(2, -1)[:, 1:].view(2, len(layer.spans), -1)
    assert (prefer.diff(dim=1) > 0).all()
    assert (prefer.diff(dim=2) < 0).all()


def test_the_newest_wins_a_slot():
    address = torch.tensor([0, 8, 1, 16, 0, 8]).view(1, -1, 1, 1)  # of 8 slots: all but the third in the first one
    assert coincidences(address, 8, 1).earlier.flatten().tolist() == [-1] * 6
    assert coincidences(address, 8, 2).earlier.tolist() == [[-1, -1]] * 6
    assert coincidences(address, 8, 3).earlier.tolist() == [[-1, -1, -1]] * 4 + [[-1, -1, 0], [-1, -1, 1]]
    assert coincidences(address, None, 1).earlier.flatten().tolist() == [-1, -1, -1, -1, 0, 1]


def test_slots_that_cannot_be_numbered_are_refused():
    with pytest.raises(ValueError, match="smaller batch"):
        coincidences(torch.zeros(1, 1, 1, 1, dtype=torch.int64).expand(2**21, 1, 2**12, 1), None, 1)


def test_streaming_equals_parallel_after_20_000_tokens():
    torch.manual_seed(0)
    model = TrajectoryLM(vocab_size=11, d_model=16, num_heads=2, bits=8, num_slots=256).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    tokens = torch.randint(11, (1, 20_000))
    state, logits = model.init_state(1), []
    with torch.inference_mode():
        for token in tokens.unbind(1):
            step_logits, state = model.step(token, state)
            logits.append(step_logits)
        expected = model(tokens)
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=0, atol=1e-4)


def test_reactivation_is_random_in_training_only_and_seeded():
    model = TrajectoryLM(vocab_size=11, d_model=16, num_heads=2)
    tokens = torch.randint(11, (2, 30))

    def drawn(seed):
        torch.manual_seed(seed)
        return model(tokens)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    model.eval()
    assert torch.equal(drawn(1), drawn(2))


def test_symbols_learn_from_reactivation():
    model = TrajectoryLM(vocab_size=50, d_model=16, num_heads=2)
    tokens = torch.arange(50)[None]  # nothing comes twice: no coincidence at all
    model.loss((tokens, tokens)).backward()
    assert model.layers[0].memory.symbol.weight.grad.abs().sum() > 0


def test_autocast_leaves_the_links_as_they_are():
    layer = TrajectoryMemory(16, 2).eval()
    x = torch.randn(5, 16)[torch.randint(5, (2, 40))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 31}, "--model.bits is 31"),
        ({"bits": 0}, "--model.bits is 0"),
        ({"num_slots": 0}, "--model.num_slots is 0"),
        ({"num_slots": 2**31}, "--model.num_slots"),
        ({"spans": (1, MAX_SPAN + 1)}, "--model.spans"),
        ({"spans": (2, 2)}, "--model.spans"),
        ({"spans": ()}, "--model.spans"),
        ({"num_matches": 0}, "--model.num_matches"),
        ({"num_heads": 3}, "--model.num_heads 3"),
        ({"num_doublings": 13}, "--model.num_doublings"),
        ({"ffn_ratio": 0}, "--model.ffn_ratio"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryLM(vocab_size=5, **{"d_model": 16} | options)
