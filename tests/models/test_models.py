"""What every model promises: causality, streaming equal to parallel, counts that are true, learning."""

import inspect
import math
from functools import partial, partialmethod

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import Palm, PotatoLM, SparseRNN, TokenFormer, TrajectoryLM, Transformer
from models.base import LanguageModel, sample
from models.layers import MIN_CACHE, KVCache, causal_attention, causal_attention_reference, layer_norm, relu_squared
from models.local_mixing import LocalMixing

# Torch's counter does not know that a bag of k weighted rows of width m is a product of 1 x k and k x m.
EMBEDDING_BAGS = {
    op: lambda rows, indices, *args, **kwargs: 2 * indices[0] * rows[1]
    for op in (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)
} | {  # nor that a bag of k dot products is one, too
    torch.ops.aten._embedding_bag_per_sample_weights_backward: lambda query, rows, indices, *args, **kwargs: (
        2 * indices[0] * rows[1]
    )
}
MODELS = {
    "Transformer": lambda **kw: Transformer(vocab_size=11, d_model=16, num_heads=2, **kw),
    "Transformer-conv": lambda **kw: Transformer(
        vocab_size=11, d_model=16, num_heads=1, positions="none", local_mixing="conv", norm="layer", **kw
    ),
    "TokenFormer": lambda **kw: TokenFormer(
        vocab_size=11, d_model=16, num_heads=2, num_param_tokens=6, num_ffn_param_tokens=24, **kw
    ),
    "TokenFormer-paper": lambda **kw: TokenFormer(
        vocab_size=11, d_model=16, num_heads=2, num_param_tokens=6, num_ffn_param_tokens=24, norm="layer", **kw
    ),
    "Palm": lambda **kw: Palm(vocab_size=11, d_model=16, num_heads=2, rank=3, embedding_rank=5, **kw),
    "Palm-aft": lambda **kw: Palm(
        vocab_size=11,
        d_model=16,
        num_heads=2,
        rank=None,
        embedding_rank=None,
        qkv_ratio=2,
        output_rank=3,
        head_rank=4,
        norm="layer",
        mixing="aft",
        recursion="each",
        local_mixing="shift",
        **kw,
    ),
    "PotatoLM": lambda **kw: PotatoLM(vocab_size=11, d_model=16, num_heads=2, ffn_ratio=2, chunk_size=5, **kw),
    "PotatoLM-carry": lambda **kw: PotatoLM(
        vocab_size=11,
        d_model=16,
        num_heads=2,
        ffn_ratio=2,
        chunk_size=5,
        card="sum",
        carry_norm=True,
        positions="rotary",
        norm="layer",
        local_mixing="shift",
        **kw,
    ),
    "SparseRNN": lambda **kw: SparseRNN(vocab_size=11, d_model=16, state_width=12, k=3, **kw),
    "SparseRNN-plain": lambda **kw: SparseRNN(vocab_size=11, d_model=16, state_width=12, k=3, variant="plain", **kw),
    "SparseRNN-literal": lambda **kw: SparseRNN(
        vocab_size=11, d_model=16, state_width=12, k=3, variant="literal", norm="layer", **kw
    ),
    "SparseRNN-dense": lambda **kw: SparseRNN(vocab_size=11, d_model=16, state_width=12, k=3, variant="dense", **kw),
    "TrajectoryLM": lambda **kw: TrajectoryLM(vocab_size=11, d_model=16, **kw),
    "TrajectoryLM-tape": lambda **kw: TrajectoryLM(vocab_size=11, d_model=16, memory_len=6, tape=True, **kw),
    "TrajectoryLM-forgetful": lambda **kw: TrajectoryLM(
        vocab_size=11,
        d_model=16,
        spans=(1, 5),
        num_matches=3,
        memory_len=3,
        num_doublings=2,
        norm="layer",
        **kw,
    ),
}


def built(name, **options):
    """A model in evaluation mode, of which every path matters: there are no zeros."""
    model = MODELS[name](**options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.fixture(params=MODELS)
def build(request):
    return partial(built, request.param)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("length", [1, 2, MIN_CACHE, 4 * MIN_CACHE + 3])
def test_streaming_equals_parallel(build, num_layers, length):
    model = build(num_layers=num_layers)
    tokens = torch.randint(11, (3, length))
    state, logits = model.init_state(3), []
    for t in range(length):
        step_logits, state = model.step(tokens[:, t], state)
        logits.append(step_logits)
    torch.testing.assert_close(torch.stack(logits, 1), model(tokens), rtol=0, atol=1e-4)


def assert_same_streams(model, first, second, steps=7):
    """Two states after which the model reads the same tokens in the same way, step by step and at once."""
    for token in torch.randint(11, (steps, 3)):
        (first_logits, first), (second_logits, second) = model.step(token, first), model.step(token, second)
        torch.testing.assert_close(first_logits, second_logits, rtol=0, atol=1e-11)
    tokens = torch.randint(11, (3, 5))
    torch.testing.assert_close(*(model.prefill(tokens, state)[0] for state in (first, second)), rtol=0, atol=1e-11)


PREFILLED = (
    {name: {} for name in MODELS}
    | {
        f"{name} {local_mixing}": {"local_mixing": local_mixing}
        for name in ("Transformer", "TokenFormer", "Palm", "PotatoLM", "SparseRNN", "TrajectoryLM")
        for local_mixing in ("shift", "conv")
    }
    | {f"{name} none": {"positions": "none"} for name in ("Transformer", "TokenFormer", "Palm")}
)


@pytest.mark.parametrize("name", PREFILLED)
@pytest.mark.parametrize("lengths", [(1, MIN_CACHE + 5), (9, 2, 5, 1)])
def test_prefill_from_any_state_is_stepping(name, lengths, monkeypatch):
    monkeypatch.setattr("models.layers.QUERY_BLOCK", 4)
    model = built(name.split()[0], num_layers=2, **PREFILLED[name]).double()
    stepped, filled = model.init_state(3), model.init_state(3)
    with torch.no_grad():
        for length in lengths:
            tokens = torch.randint(11, (3, length))
            for token in tokens.unbind(1):
                expected, stepped = model.step(token, stepped)
            logits, filled = model.prefill(tokens, filled)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)
        assert_same_streams(model, stepped, filled)


@pytest.mark.parametrize("name", ["Transformer", "Palm", "Palm-aft"])  # the tests of the others have their own
def test_streaming_equals_parallel_after_10_000_tokens(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for p in model.parameters():  # nothing is zero or quiet, but nothing explodes either
        p.data += 0.05 * torch.randn_like(p)
    tokens, logits = torch.randint(11, (1, 10_020)), []
    with torch.inference_mode():
        _, state = model.prefill(tokens[:, :8000], model.init_state(1))
        for token in tokens[:, 8000:].unbind(1):
            step_logits, state = model.step(token, state)
            logits.append(step_logits)
        expected = model(tokens)[:, -20:]
    torch.testing.assert_close(torch.stack(logits[-20:], 1), expected, rtol=0, atol=1e-4)


def test_no_output_depends_on_a_later_token(build):
    model = build(num_layers=2)
    tokens = torch.randint(11, (2, 12))
    logits = model(tokens)
    for t in range(1, 12):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + torch.randint(1, 11, changed[:, t:].shape)) % 11
        torch.testing.assert_close(model(changed)[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(model(changed)[:, t:], logits[:, t:])


def test_a_model_is_built_without_memory_where_only_its_sizes_are_asked_for(build):
    with torch.device("meta"):
        model = build(num_layers=2)
    assert all(p.is_meta for p in model.parameters())
    assert model.num_parameters() == build(num_layers=2).num_parameters()


def test_flops_are_those_that_torch_counts(build):
    model = build(num_layers=2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=EMBEDDING_BAGS) as counter:
        model(torch.randint(11, (3, 20)))
    mixings = [m for layer in model.depth() for m in layer.modules() if isinstance(m, LocalMixing)]  # elementwise
    products = model.flops_per_token(20) - sum(m.flops_per_token() for m in mixings)
    assert counter.get_total_flops() == 3 * 20 * products


@pytest.mark.parametrize("length", [1, MIN_CACHE, MIN_CACHE + 1, 100])
def test_state_bytes_are_those_of_the_tensors(build, length):
    model = build(num_layers=2)
    state = model.init_state(1)
    for token in torch.randint(11, (length, 1)):
        _, state = model.step(token, state)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []

    assert sum(t.numel() * t.element_size() for t in tensors(state)) == model.state_bytes(length)


def test_overfits_one_batch(build):
    model = build().train()
    model.init_weights()
    for layer in model.layers:
        for module in layer.modules():
            if hasattr(module, "init_weights"):
                module.init_weights()
    tokens = torch.randint(11, (4, 17))
    batch = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        if loss < 0.2:
            break
    assert loss < 0.2


def test_loss_counts_scored_positions_only(build):
    model = build()
    inputs, targets = torch.randint(11, (2, 5)), torch.full((2, 5), -100)
    targets[0, 1], targets[1, 4] = 3, 7
    logits = model(inputs)
    expected = F.cross_entropy(torch.stack((logits[0, 1], logits[1, 4])), torch.tensor([3, 7]))
    torch.testing.assert_close(model.loss((inputs, targets)), expected)


def test_generation_is_what_sampling_from_the_parallel_form_gives(build):
    model = build()
    prompt = torch.randint(11, (2, 3))
    generator, tokens = torch.Generator().manual_seed(1), prompt
    for _ in range(6):
        tokens = torch.cat((tokens, sample(model(tokens)[:, -1], 0.7, 4, generator)[:, None]), 1)
    assert torch.equal(model.generate(prompt, 6, 0.7, 4, torch.Generator().manual_seed(1)), tokens)
    streamed = list(model.stream(prompt, 6, 0.7, 4, torch.Generator().manual_seed(1)))
    assert torch.equal(torch.stack(streamed, 1), tokens[:, 3:])
    assert torch.equal(model.generate(prompt, 0), prompt)
    with pytest.raises(ValueError, match="prompt_BT has no token"):
        model.generate(prompt[:, :0], 6)


@pytest.mark.parametrize("begins", [(3, 3), (0, 5), (7, 2), (7, 7)])
def test_free_running_reads_its_own_output_where_it_is_scored(build, begins):
    model = build()
    inputs, targets = torch.randint(11, (2, 8)), torch.full((2, 8), -100)
    for row, begin in enumerate(begins):
        targets[row, begin:] = torch.randint(11, (8 - begin,))
    with torch.no_grad():
        outputs = model.free_running((inputs, targets))
        for row, begin in enumerate(begins):
            tokens = inputs[row : row + 1, : begin + 1]
            for _ in range(begin, 7):
                tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
            assert torch.equal(outputs[row, begin:], model(tokens)[0, begin:].argmax(-1))


@pytest.mark.parametrize(
    "name",
    ["Transformer-conv", "TokenFormer", "Palm-aft", "PotatoLM", "PotatoLM-carry", "SparseRNN", "TrajectoryLM-tape"],
)
def test_a_compiled_step_writes_the_same_and_is_compiled_once(name, uncompiled):
    model = built(name, num_layers=2, **({"positions": "rotary"} if name == "PotatoLM" else {}))
    for batch_size in (1, 2):
        prompt = torch.randint(11, (batch_size, 7))
        torch.compiler.reset()
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled = model.generate(prompt, MIN_CACHE, temperature=0, compile=True)
        assert torch.equal(compiled, model.generate(prompt, MIN_CACHE, temperature=0))


def test_a_compiled_step_attends_over_hardly_more_than_it_will_have_read():
    key, value = torch.randn(2, 2, 1, 33, 4)
    cache = KVCache.empty(2, 1, 4, key).extended(key, value)
    fixed = cache.fixed(40)
    assert (cache.keys.size(2), fixed.keys.size(2), int(fixed.length)) == (64, 48, 33)
    for kept, filled in ((fixed.keys, key), (fixed.values, value)):
        assert torch.equal(kept, F.pad(filled, (0, 0, 0, 15)))


def test_a_step_compiled_to_machine_code_writes_the_same():
    model, prompt = built("TrajectoryLM"), torch.randint(11, (2, 7))
    written = model.generate(prompt, 9, temperature=0, compile=True)
    assert torch.equal(written, model.generate(prompt, 9, temperature=0))


def assert_same_compiled(model):
    tokens = torch.randint(11, (2, 9))
    expected = model(tokens)
    torch.compiler.reset()  # after eight compilations of one function it would run as it is
    model.compile_layers = True
    model.configure_model()
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in key for key in model.state_dict())


def test_compiled_layers_compute_the_same(build, monkeypatch):
    graphs = partialmethod(nn.Module.compile, backend="eager")  # all of compiling but the making of machine code
    monkeypatch.setattr(nn.Module, "compile", graphs)
    assert_same_compiled(build())


def test_layers_compiled_to_machine_code_compute_the_same():
    assert_same_compiled(built("TokenFormer"))


def test_sampling_respects_top_k_and_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(2000, 4)
    generator = torch.Generator().manual_seed(0)
    assert set(sample(logits, 1.0, 2, generator).tolist()) == {2, 3}
    assert set(sample(logits, 0.0, None, None).tolist()) == {3}
    share = (sample(logits, 2.0, None, generator) == 3).float().mean()
    assert abs(share - logits[0].div(2).softmax(0)[3]) < 0.04


def test_attention_equals_its_reference_in_values_and_gradients():
    inputs = [torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 7, 12, dtype=torch.float64)
    results = []
    for function in (causal_attention, causal_attention_reference):
        output = function(*inputs, num_heads=2)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)  # angles are float32


def test_squared_relu_has_the_values_and_gradients_of_its_formula():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    y = relu_squared(x)
    assert torch.equal(y, F.relu(x).square())
    assert torch.equal(relu_squared(x.detach()), y)
    torch.testing.assert_close(*(torch.autograd.grad(z.sin().sum(), x)[0] for z in (y, F.relu(x).square())))


def test_rotary_attention_sees_distances_not_positions():
    q, k, v = (torch.randn(1, 30, 8) for _ in range(3))
    padded = [torch.cat((x[:, :1].expand(1, 10, 8), x), 1) for x in (q, k, v)]
    from models.layers import rotary, split_heads

    score = rotary(split_heads(q, 2)) @ rotary(split_heads(k, 2)).mT
    shifted = rotary(split_heads(padded[0], 2)) @ rotary(split_heads(padded[1], 2)).mT
    torch.testing.assert_close(shifted[..., 10:, 10:], score, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30, "num_heads": 4}, "--model.d_model 30"),
        ({"num_heads": 0}, "--model.num_heads 0"),
        ({"d_model": 12, "num_heads": 4}, "--model.d_model 12 with --model.num_heads 4 must be a multiple of 8"),
        ({"num_layers": 0}, "--model.num_layers"),
        ({"dropout": 1.0}, "--model.dropout"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    for model in (Transformer, TokenFormer):
        with pytest.raises(ValueError, match=message):
            model(vocab_size=5, **options)


@pytest.mark.parametrize("kind", [Transformer, TokenFormer, PotatoLM, Palm, SparseRNN, TrajectoryLM])
@pytest.mark.parametrize("value", [0, -1])
def test_each_number_is_taken_or_refused_by_name(kind, value):
    options = inspect.signature(kind).parameters.values()
    for name in [option.name for option in options if type(option.default) in (int, float)]:
        said = f"--model.{name} "
        try:
            kind(vocab_size=10, **{name: value})(torch.zeros(1, 5, dtype=torch.long))
        except ValueError as error:
            said = str(error)
        assert f"--model.{name} " in said


@pytest.mark.parametrize("kind", [Transformer, TokenFormer, PotatoLM, Palm, SparseRNN, TrajectoryLM])
def test_the_norm_of_blocks_and_head_is_chosen_by_name(kind):
    model = kind(vocab_size=11, d_model=16, norm="layer")
    assert {vars(module)["norm"] for module in model.modules() if "norm" in vars(module)} == {layer_norm}
    features = model.features(torch.randint(11, (2, 7)))
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 7), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="--model.norm is 'batch'; choose one of rms, layer"):
        kind(vocab_size=11, norm="batch")


def test_dropout_is_active_in_training_only():
    model = Transformer(vocab_size=5, d_model=16, dropout=0.5)
    tokens = torch.randint(5, (1, 4))
    nn.init.normal_(model.head.weight)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_untrained_loss_is_that_of_a_uniform_guess():
    for model in (
        *(kind(vocab_size=50) for kind in (Palm, PotatoLM, SparseRNN, TokenFormer, TrajectoryLM, Transformer)),
        TokenFormer(vocab_size=50, num_layers=4),
        Palm(vocab_size=50, num_layers=2, num_recursions=3),
    ):
        tokens = torch.randint(50, (4, 33))
        assert abs(model.loss((tokens[:, :-1], tokens[:, 1:])).item() - math.log(50)) < 0.15


OLD_WIDTHS = ("num_heads", "state_width", "k", "rank", "embedding_rank", "num_param_tokens", "num_ffn_param_tokens")


@pytest.mark.parametrize("kind", [Transformer, TokenFormer, PotatoLM, Palm, SparseRNN, TrajectoryLM])
@pytest.mark.parametrize("d_model", [8, 64, 128, 192, 1000])
@pytest.mark.parametrize("given", [{}, {"d_model": 96}, {"num_layers": 3, "rank": None, "num_heads": 6, "k": 5}])
def test_every_option_that_is_a_width_goes_along_with_d_model(kind, d_model, given):
    parameters = inspect.signature(kind).parameters
    given = {name: value for name, value in given.items() if name in parameters}
    options = {name: parameter.default for name, parameter in parameters.items()} | given
    factor = d_model / options["d_model"]
    scaled = {n: max(1, round(factor * options[n])) for n in OLD_WIDTHS if isinstance(options.get(n), int)}
    assert kind.at_width(given, d_model) == {"d_model": d_model} | scaled


@pytest.mark.parametrize("names", [None, ("num_hedas",)])
def test_a_model_that_does_not_say_what_scales_is_not_compared_wrongly(names):
    class Narrow(LanguageModel):
        scales_with_width = names

        def __init__(self, *, d_model: int = 8, num_heads: int = 2) -> None:
            raise AssertionError("not needed")

    with pytest.raises(ValueError, match="Narrow does not say which .* `scales_with_width` .* d_model, num_heads"):
        Narrow.at_width({}, 16)
