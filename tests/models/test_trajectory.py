"""TrajectoryLM: links and recall against their references, what coincides and what does not, the bounded state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TrajectoryLM
from models.trajectory.index import ContextIndex
from models.trajectory.links import (
    MAX_NUMBERS,
    MAX_SPAN,
    OPENING,
    PRIME,
    RADIX,
    Candidates,
    coincidences,
    coincidences_reference,
    context_addresses,
)
from models.trajectory.model import TrajectoryMemory
from models.trajectory.recall import recall, recall_reference
from models.trajectory.tape import WINDOWS, Tape, tape_reference

SPANS = (1, 2, 3, 5, 8)


def loud(num_layers=1, **options):
    """A model in float64 of which every part matters."""
    torch.manual_seed(1)
    options = {"d_model": 8, "num_layers": num_layers} | options
    model = TrajectoryLM(vocab_size=11, **options).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    memory_len=st.sampled_from([1, 3, 64]),
    num_matches=st.integers(1, 4),
    rows=st.integers(1, 3),
)
def test_links_are_those_of_all_pairs(tokens, memory_len, num_matches, rows):
    tokens_BT = torch.stack([torch.tensor(tokens).roll(i) for i in range(rows)])
    address = context_addresses(tokens_BT, (1, 2, 3))
    for found, expected in zip(
        coincidences(address, memory_len, num_matches),
        coincidences_reference(address, memory_len, num_matches),
        strict=True,
    ):
        assert torch.equal(found, expected)


@given(tokens=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=40), span=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_an_address_is_the_polynomial_of_the_last_tokens(tokens, span):
    address = context_addresses(torch.tensor([tokens]), (span,))[0, :, 0].tolist()
    first = context_addresses(torch.tensor([tokens]), (1,))[0, :, 0].tolist()
    for t, found in enumerate(address):
        last = first[max(0, t - span + 1) : t + 1][::-1]
        assert found == sum(a * pow(RADIX, i, PRIME) for i, a in enumerate(last)) % PRIME


@given(st.lists(st.integers(0, 2), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_contexts_coincide_just_where_all_their_tokens_do(tokens):
    address = context_addresses(torch.tensor([tokens]), SPANS)[0]
    padded = [None] * max(SPANS) + tokens
    for i, span in enumerate(SPANS):
        context = [tuple(padded[t + max(SPANS) + 1 - span : t + max(SPANS) + 1]) for t in range(len(tokens))]
        for t in range(len(tokens)):
            same = [context[s] == context[t] for s in range(len(tokens))]
            assert (address[:, i] == address[t, i]).tolist() == same


@pytest.mark.parametrize("length", [1, 2, 12])
def test_recall_equals_its_reference_in_values_and_gradients(length):
    torch.manual_seed(0)
    B, T, K = 2, length, 2
    links = coincidences(context_addresses(torch.randint(3, (B, T)), (1, 2)), 8, K)
    scores = torch.randn(B * T, 1 + OPENING + 2 * K, dtype=torch.float64, requires_grad=True)
    values = torch.randn(B, T, 3, dtype=torch.float64, requires_grad=True)
    weights, results = torch.randn_like(values), []
    for function in (recall, recall_reference):
        output = function(scores.clone(), values, links)
        results.append((output, *torch.autograd.grad((output * weights).sum(), [scores, values])))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)
    assert all(x.abs().sum() > 0 for x in results[0])


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(2, 20),
    padding=st.integers(1, 9),
    memory_len=st.sampled_from([4, 512]),
    layers=st.sampled_from([1, 4]),
    tape=st.booleans(),
)
def test_a_row_depends_on_its_own_past_alone(length, padding, memory_len, layers, tape):
    model = loud(layers, memory_len=memory_len, tape=tape)
    tokens = torch.randint(3, (2, length))
    expected = model(tokens)
    padded = torch.cat((tokens, torch.randint(3, (2, padding))), 1)
    torch.testing.assert_close(model(padded)[:, :length], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(tokens[1:]), expected[1:], rtol=0, atol=1e-12)


def test_a_key_recalls_its_value_and_order_matters():
    torch.manual_seed(0)
    candidates = Candidates((1, 2), num_matches=2, memory_len=64)
    index, memory = ContextIndex(candidates), TrajectoryMemory(16, candidates, num_doublings=0)
    torch.nn.init.eye_(memory.out.weight)
    memory.select.bias.data = torch.tensor(
        [0.0] + OPENING * [-20.0] + [20.0, 20.0, 40.0, 40.0]
    )  # the longer one counts
    vectors = torch.randn(6, 16)
    a, b, c, d, e, f = range(6)

    def recalled(*sequence):
        tokens = torch.tensor([sequence])
        return memory(vectors[tokens], index(tokens))[0, -1]

    torch.testing.assert_close(recalled(a, b, c, a), vectors[b], rtol=0, atol=1e-3)  # key to value,
    torch.testing.assert_close(recalled(a, b, c, b), vectors[c], rtol=0, atol=1e-3)  # never back
    pairs = (a, b, c, f, b, a, d, f, a, d, e, f, c, b, e, f)
    torch.testing.assert_close(recalled(*pairs, a, b), vectors[c], rtol=0, atol=1e-3)
    torch.testing.assert_close(recalled(*pairs, b, a), vectors[d], rtol=0, atol=1e-3)
    memory.select.bias.data[1] = 80.0  # the sequence's second position counts most
    torch.testing.assert_close(recalled(*pairs, a, b), vectors[b], rtol=0, atol=1e-3)


def test_the_longest_match_is_preferred_from_the_start():
    memory = TrajectoryMemory(16, Candidates())
    prefer_LK = memory.select.bias[1 + OPENING :].view(len(memory.candidates.spans), -1)
    assert (prefer_LK.diff(dim=0) > 0).all()
    assert (prefer_LK.diff(dim=1) < 0).all()


def test_the_newest_wins_a_slot():
    def found(address, memory_len, num_matches):
        links = coincidences(torch.tensor(address).view(1, -1, 1), memory_len, num_matches)
        return links.source[:, OPENING:].tolist()

    address = [0, 8, 1, 16, 0, 8]  # of 8 slots: all but the third in the first one
    assert found(address, 8, 2) == [[-1, -1]] * 6
    assert found(address, 8, 3) == [[-1, -1, -1]] * 4 + [[-1, -1, 1], [-1, -1, 2]]
    assert found([0, 0, 0, 0], 2, 3)[3] == [3, 2, -1]  # the first is too far back


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 20),
    memory_len=st.sampled_from([1, 4, 64]),
    width=st.sampled_from([4, 8]),
)
def test_a_tape_is_read_as_the_formula_says_in_values_and_gradients(length, memory_len, width):
    torch.manual_seed(length)
    tape = Tape(width, memory_len).double()
    torch.nn.init.normal_(tape.gates.weight)
    tape.gates.bias.data[1] += 3
    x = torch.randn(2, length, width, dtype=torch.float64, requires_grad=True)
    weights, leaves = torch.randn_like(x), [x, *tape.parameters()]
    read = tape(x), tape_reference(x, *tape.lengths(x), memory_len)
    results = [(output, *torch.autograd.grad((output * weights).sum(), leaves)) for output in read]
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_what_counts_is_read_one_after_the_other_wherever_it_stands():
    blank, separator, *symbols = range(7)
    tape, vectors = Tape(8, 64).double(), torch.eye(8, dtype=torch.float64)
    with torch.no_grad():
        tape.gates.bias.fill_(-40.0)
        tape.gates.weight[0, symbols] = 80.0  # symbols write a unit
        tape.gates.weight[1, separator] = 80.0  # separators move on by one
        narrow = slice(len(vectors) // len(WINDOWS))  # what the window of length 1 reads
        for string in ([2, 3, 4], [6, 2, 6, 5]):
            sequence = [blank, string[0], blank, blank, *string[1:], blank, *[separator] * len(string)]
            x = 3 * vectors[torch.tensor([sequence])]
            read = tape(x)[0, -len(string) :]
            expected = 3 * vectors[torch.tensor(string)]
            torch.testing.assert_close(read[:, narrow], expected[:, narrow])


@pytest.mark.parametrize("memory_len", [5, 64, 8192])
@pytest.mark.parametrize("tape", [False, True])
@pytest.mark.parametrize("cuts", [(30,), (1, 1, 2, 26), (7, 23), (2, 28)])
@pytest.mark.parametrize("layers", [1, 4])
def test_prefill_equals_steps_from_any_state(memory_len, tape, cuts, layers):
    model, tokens = (
        loud(layers, memory_len=memory_len, tape=tape, num_doublings=2, local_mixing="conv"),
        torch.randint(3, (2, 40)),
    )
    with torch.no_grad():
        expected, state = model(tokens), model.init_state(2)
        start = 0
        for length in cuts:
            logits, state = model.prefill(tokens[:, start : start + length], state)
            start += length
            torch.testing.assert_close(logits, expected[:, start - 1], rtol=0, atol=1e-12)
        for t in range(start, 40):
            logits, state = model.step(tokens[:, t], state)
            torch.testing.assert_close(logits, expected[:, t], rtol=0, atol=1e-12)


@given(
    spans=st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True),
    num_matches=st.integers(1, 7),
    memory_len=st.integers(1, 9),
    length=st.integers(1, 5),
)
def test_a_prompt_may_be_shorter_than_what_is_linked(spans, num_matches, memory_len, length):
    model = loud(1, spans=tuple(spans), num_matches=num_matches, memory_len=memory_len)
    tokens = torch.randint(3, (1, 2 * length))
    with torch.no_grad():
        expected, state = model(tokens), model.init_state(1)
        for end in (length, 2 * length):
            logits, state = model.prefill(tokens[:, end - length : end], state)
            torch.testing.assert_close(logits, expected[:, end - 1], rtol=0, atol=1e-12)


def test_streaming_equals_parallel_after_5_000_tokens():
    torch.manual_seed(0)
    model = TrajectoryLM(vocab_size=11, d_model=16, memory_len=250).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    tokens = torch.randint(11, (1, 5000))  # which fill the ring twenty times
    state, logits = model.init_state(1), []
    state[1][0].ring[:, :250] = torch.nan  # what is not written yet is never read
    with torch.inference_mode():
        for token in tokens.unbind(1):
            step_logits, state = model.step(token, state)
            logits.append(step_logits)
        expected = model(tokens)
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spans", [(1, 3), (2, MAX_SPAN)])
def test_a_step_finds_what_was_read_at_once_whatever_the_numbers_of_tokens(spans):
    largest = MAX_NUMBERS // max(spans)
    once_B5 = torch.randint(max(0, largest - 100), largest, (2, 5))
    tokens_BT = once_B5.repeat(1, 3)
    index = ContextIndex(Candidates(spans, 2, 64))
    _, state = index.prefill(tokens_BT[:, :7], index.init_state(2))
    missing = []
    for t in range(7, 15):
        rows, state = index.step(tokens_BT[:, t], state)
        missing.append(rows.missing)
    expected = index(tokens_BT).missing.unflatten(0, (2, 15))[:, 7:]
    assert not expected.all()
    assert torch.equal(torch.stack(missing, 1), expected)


def test_links_do_not_depend_on_the_batch_or_on_precision():
    tokens = torch.randint(5, (64, 100))
    index = ContextIndex(Candidates(SPANS, 3, 64))
    whole = index(tokens)
    for b in range(64):
        alone = index(tokens[b : b + 1])
        for rows, of_all in zip(alone[:2], whole[:2], strict=True):
            assert torch.equal(torch.where(rows >= 0, rows + 100 * b, -1), of_all[100 * b : 100 * (b + 1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(index(tokens), whole, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_len": 0}, "--model.memory_len is 0"),
        ({"memory_len": 2**31}, "--model.memory_len"),
        ({"spans": (1, MAX_SPAN + 1)}, "--model.spans"),
        ({"spans": (2, 2)}, "--model.spans"),
        ({"spans": ()}, "--model.spans"),
        ({"num_matches": 0}, "--model.num_matches"),
        ({"num_doublings": 13}, "--model.num_doublings"),
        ({"tape": True, "d_model": 18}, "--model.tape true divides --model.d_model 18"),
        ({"ffn_ratio": 0}, "--model.ffn_ratio"),
        ({"vocab_size": 2**21, "spans": (1, MAX_SPAN)}, "--model.spans"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryLM(**{"vocab_size": 5, "d_model": 16} | options)
