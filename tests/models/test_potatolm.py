"""PotatoLM against its formulas: the card, chunks, the normalised carry, and streaming over a long text."""

from pathlib import Path

import pytest
import torch
import yaml

from models.layers import layer_norm
from models.potatolm import PassTheCard, PotatoLM, earlier_sum, pass_the_card_reference

PRESET = Path(__file__).resolve().parents[2] / "app" / "configs" / "experiment" / "potatolm_3m.yaml"


CARDS = [("sum", False), ("sum", True), ("decay", False)]


def layer(chunk_size=4, carry_norm=False, dtype=torch.float32, card="sum"):
    built = PassTheCard(12, 3, 5, chunk_size, card, carry_norm).to(dtype)
    generator = torch.Generator().manual_seed(7)
    for parameter in built.parameters():  # the output projection is zero at the start
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.4
    return built


def values_and_gradients(built, function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view_as(y)
    inputs = [x, *built.parameters()]
    return y, *torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True, materialize_grads=True)


def difference(first, second):
    """Largest difference, in units of the largest number of each tensor where that is above 1."""
    pairs = zip(first, second, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


@pytest.mark.parametrize(("card", "carry_norm"), CARDS)
@pytest.mark.parametrize(("length", "chunk_size"), [(1, 4), (11, 4), (12, 4), (5, 1), (6, 64)])
def test_the_layer_equals_its_reference_in_values_and_gradients(card, carry_norm, length, chunk_size):
    built = layer(chunk_size, carry_norm, torch.float64, card)
    x = torch.randn(2, length, 12, dtype=torch.float64)
    fast = values_and_gradients(built, built, x)
    slow = values_and_gradients(built, lambda x: pass_the_card_reference(built, x), x)
    assert difference(fast, slow) < 1e-10


def test_the_chunk_size_changes_nothing_unless_the_carry_is_normalised():
    x = torch.randn(2, 150, 12)
    plain, normed = (
        [
            values_and_gradients(built, built, x)
            for built in (layer(chunk_size, carry_norm) for chunk_size in (1, 7, 64))
        ]
        for carry_norm in (False, True)
    )
    assert max(difference(results, plain[0]) for results in plain[1:]) < 1e-5
    assert (normed[0][0] - normed[1][0]).abs().max() > 0.1
    assert (normed[1][0] - normed[2][0]).abs().max() > 0.1


def test_a_card_holds_strictly_earlier_writes_only():
    writes = torch.randn(2, 9, 4)
    card = earlier_sum(writes, 3)
    assert torch.equal(card[:, 0], torch.zeros(2, 4))
    torch.testing.assert_close(card[:, 8], writes[:, :8].sum(1))


def test_each_head_normalises_its_own_slice_of_the_card():
    built, card, own = layer(), torch.randn(2, 12), torch.randn(2, 12)
    rescaled = torch.cat((3 * card[:, :4] + 5, card[:, 4:]), 1)
    torch.testing.assert_close(built.answers(rescaled, own), built.answers(card, own), rtol=0, atol=1e-4)
    assert not torch.allclose(layer_norm(rescaled), layer_norm(card), atol=0.1)


def test_a_new_layer_changes_nothing():
    x = torch.randn(2, 9, 12)
    assert torch.equal(PassTheCard(12, 3, 5)(x), x)


def test_heads_forget_at_different_rates_and_a_sum_that_hardly_decays_is_the_sum():
    decaying, plain = layer(card="decay"), layer()
    decaying.init_weights()
    torch.testing.assert_close(1 - decaying.decay.sigmoid(), 2 ** (-8 * torch.tensor([1, 2, 3]) / 3))
    decaying.load_state_dict(plain.state_dict() | {"decay": torch.full((3,), 20.0)})
    x = torch.randn(2, 50, 12)
    torch.testing.assert_close(decaying(x), plain(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("card", "carry_norm"), CARDS)
def test_streaming_equals_parallel_after_ten_thousand_tokens(card, carry_norm):
    built = layer(64, carry_norm, card=card)
    x = torch.randn(1, 10_000, 12)
    with torch.no_grad():
        expected, state = built(x), built.init_state(1)
        y_BTD, state = built.prefill(x[:, :8000], state)
        outputs = [*y_BTD.unbind(1)]
        for x_BD in x[:, 8000:].unbind(1):
            y_BD, state = built.step(x_BD, state)
            outputs.append(y_BD)
    error = (torch.stack(outputs, 1) - expected).abs()
    assert error[:, :100].max() < 1e-5
    assert error.max() < 1e-4


def test_cards_stay_in_float32_where_weights_are_bfloat16():
    built = layer(dtype=torch.bfloat16)
    x = torch.randn(1, 100, 12).bfloat16()
    state, outputs = built.init_state(1), []
    for x_BD in x.unbind(1):
        y_BD, state = built.step(x_BD, state)
        outputs.append(y_BD)
    assert state.card.dtype == torch.float32
    assert sum(x.numel() * x.element_size() for x in state[:3]) == built.state_bytes(100)
    parallel = built(x)
    assert parallel.dtype == torch.bfloat16
    torch.testing.assert_close(torch.stack(outputs, 1), parallel, rtol=0.02, atol=0.02)
    reference = pass_the_card_reference(built.double(), x.double())
    assert (parallel - reference).abs().mean() < 0.02 * reference.abs().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"card": "mean"}, "--model.card is 'mean'; choose one of sum, decay"),
        (
            {"card": "decay", "carry_norm": True},
            "--model.carry_norm true .* --model.card decay .*; choose .*card sum",
        ),
        ({"chunk_size": 0}, "--model.chunk_size is 0; it must be at least 1"),
        ({"num_layers": 0}, "--model.num_layers is 0"),
        ({"ffn_ratio": 0}, "--model.ffn_ratio is 0"),
        ({"d_model": 15, "num_heads": 3, "positions": "rotary"}, "--model.d_model 15 must be a multiple of 2"),
        ({"d_model": 16, "num_heads": 3}, "--model.num_heads 3 heads; choose d_model a multiple of 3"),
        ({"num_heads": 0}, "--model.num_heads 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PotatoLM(vocab_size=5, **options)


def test_the_preset_has_three_million_parameters():
    options = yaml.safe_load(PRESET.read_text())["model"]
    assert options["class_path"] == "PotatoLM"
    with torch.device("meta"):
        parameters = PotatoLM(vocab_size=100, **options["init_args"]).num_parameters()
    assert 2.9e6 <= parameters <= 3.1e6
