"""The recipe: groups, schedules, and Muon beside AdamW as one optimizer."""

import copy
from dataclasses import asdict

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from models import Palm, PotatoLM, SparseRNN, TokenFormer, TrajectoryLM, Transformer
from models.optim import Optim, build_optimizer, lr_scale, parameters_by_kind, reapply, warmed_momentum

MUON = Optim(
    optimizer="muon", learning_rate=0.01, matrix_learning_rate=0.02, head_learning_rate=0.03,
    embedding_learning_rate=0.04, weight_decay=0.1, momentum_warmup_steps=3,
)  # fmt: skip


def tokenformer():
    torch.manual_seed(0)
    return TokenFormer(vocab_size=7, d_model=8, num_heads=2, num_param_tokens=4, num_ffn_param_tokens=6)


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def train(model, optimizer, steps):
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def test_kinds_of_parameters():
    kinds = parameters_by_kind(Transformer(vocab_size=5, d_model=8, num_heads=2, local_mixing="shift"))
    assert {kind: [tuple(p.shape) for p in ps] for kind, ps in kinds.items()} == {
        "embeddings": [(5, 8)], "head": [(5, 8)], "tied": [], "vectors": [(24,)],
        "matrices": [(24, 8), (8, 8), (32, 8), (8, 32)],
    }  # fmt: skip
    tied = parameters_by_kind(Transformer(vocab_size=5, d_model=8, num_heads=2, tie_embeddings=True))
    assert [len(tied[kind]) for kind in ("embeddings", "head", "tied")] == [0, 0, 1]
    factorised = {"vocab_size": 5, "d_model": 16, "embedding_rank": 4}
    assert len(parameters_by_kind(Palm(**factorised))["embeddings"]) == 2  # both factors
    assert len(parameters_by_kind(Palm(**factorised, tie_embeddings=True))["tied"]) == 2


LAYER, MEMORY = "layers.0", "layers.0.memory"
VECTORS = {
    Palm: set(),
    PotatoLM: {*(f"layers.1.local_mixing.taps.{i}" for i in range(4)), f"{LAYER}.decay", "layers.1.decay"},
    SparseRNN: {f"{LAYER}.recurrence.start", f"{LAYER}.recurrence.rule_bias"},
    TokenFormer: set(),
    TrajectoryLM: {*(f"{MEMORY}.lags.{i}" for i in range(4)), f"{MEMORY}.select.bias"},
    Transformer: set(),
}


@pytest.mark.parametrize("model_class", VECTORS)
def test_each_parameter_of_the_models_is_trained_by_its_role(model_class):
    model = model_class(vocab_size=5, d_model=16, local_mixing="conv", tie_embeddings=False)
    vectors = VECTORS[model_class] | {f"{LAYER}.local_mixing.taps.{i}" for i in range(4)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    embeddings = {name for name in names.values() if name.startswith("embed.")}
    matrices = set(names.values()) - embeddings - {"head.weight"} - vectors
    kinds = {kind: {names[p] for p in parameters} for kind, parameters in parameters_by_kind(model).items()}
    assert kinds == {
        "matrices": matrices, "head": {"head.weight"}, "embeddings": embeddings, "tied": set(), "vectors": vectors,
    }  # fmt: skip


def test_a_role_is_the_same_at_any_size():
    narrow = Palm(vocab_size=5, d_model=16, rank=1, embedding_rank=1)
    assert [len(parameters) for parameters in parameters_by_kind(narrow).values()] == [11, 1, 2, 0, 0]
    one_token = TokenFormer(vocab_size=5, d_model=16, num_param_tokens=1, num_ffn_param_tokens=1)
    assert not parameters_by_kind(one_token)["vectors"]  # it may become several


def test_what_is_embedding_and_head_is_trained_as_the_head():
    tied = Transformer(vocab_size=5, d_model=8, num_heads=2, tie_embeddings=True)
    rates = {group["kind"]: (group["lr"], group["weight_decay"]) for group in build_optimizer(tied, MUON).param_groups}
    assert rates == {"matrices": (0.02, 0.1), "tied": (0.03, 0.0)}


def as_once_saved(optimizer, model):
    """An optimizer's state as older versions grouped it: columns among the matrices, a tied head among embeddings."""
    kinds = parameters_by_kind(model, columns="matrices", tied="embeddings")
    numbers = {p: number for number, p in enumerate(p for parameters in kinds.values() for p in parameters)}
    once = [
        group | {"kind": "embeddings" if group["kind"] == "tied" else group["kind"]} for group in optimizer.param_groups
    ]
    groups = [group | {"params": [numbers[p] for p in kinds[group["kind"]]]} for group in once]
    return copy.deepcopy({"state": {numbers[p]: state for p, state in optimizer.state.items()}, "param_groups": groups})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("optim", [Optim(), MUON])
def test_a_state_from_when_columns_were_matrices_and_tied_heads_embeddings_goes_on(optim, tied):
    torch.manual_seed(0)
    model = SparseRNN(vocab_size=5, d_model=8, state_width=6, k=2, tie_embeddings=tied)
    bias = model.layers[0].recurrence.rule_bias
    train(model, whole := build_optimizer(model, optim), range(3))
    if optim is MUON:  # of which AdamW, whose the bias is now, has no use: there it begins anew
        whole.state[bias] = {"momentum_buffer": torch.ones_like(bias)}
    resumed = build_optimizer(model, optim)
    resumed.load_state_dict(as_once_saved(whole, model))
    assert resumed.state.keys() == set(model.parameters()) - ({bias} if optim is MUON else set())
    for one, other in zip(whole.param_groups, resumed.param_groups, strict=True):
        assert all(p is q for p, q in zip(one["params"], other["params"], strict=True))
    for parameter, state in resumed.state.items():
        torch.testing.assert_close(state, whole.state[parameter], rtol=0, atol=0)
    train(model, resumed, [3])
    assert resumed.state[bias]["step"] == (1 if optim is MUON else 4)


def test_a_state_keeps_to_the_kernels_of_its_optimizer():
    model = tokenformer()
    plain, fused = build_optimizer(model, Optim(), fused=False), build_optimizer(model, Optim())
    train(model, plain, [0])
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    assert {group["fused"] for group in fused.param_groups} == {True}
    assert {group["fused"] for group in plain.param_groups} == {False}


def test_a_state_of_another_model_is_refused():
    saved = build_optimizer(tokenformer(), Optim()).state_dict()
    with pytest.raises(ValueError, match="other parameters than the model's"):
        build_optimizer(Transformer(vocab_size=7, d_model=8, num_heads=2), Optim()).load_state_dict(saved)


def test_one_optimizer_does_what_muon_and_adamw_do_apart():
    model, twin = tokenformer(), tokenformer()
    train(model, build_optimizer(model, MUON), range(6))
    kinds = parameters_by_kind(twin)
    muon = torch.optim.Muon(kinds["matrices"], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": kinds["head"], "lr": 0.03, "weight_decay": 0.1},
            {"params": kinds["embeddings"], "lr": 0.04, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98), eps=1e-8,
    )  # fmt: skip
    for step in range(6):
        muon.param_groups[0]["momentum"] = (0.85, 0.85 + 0.1 / 3, 0.85 + 0.2 / 3, 0.95, 0.95, 0.95)[step]
        set_gradients(twin, step)
        muon.step()
        adamw.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("copied", [False, True])
def test_muon_goes_on_from_its_state_bit_for_bit(copied):
    whole = tokenformer()
    train(whole, build_optimizer(whole, MUON), range(8))
    model = tokenformer()
    optimizer = build_optimizer(model, MUON)
    train(model, optimizer, range(4))
    if copied:
        model, optimizer = copy.deepcopy((model, optimizer))
    else:
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = build_optimizer(model, MUON)
        optimizer.load_state_dict(state)
    train(model, optimizer, range(4, 8))
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_growth_pads_muons_momentum():
    model = tokenformer()
    optimizer = build_optimizer(model, MUON)
    train(model, optimizer, range(3))
    layer = model.layers[0].ffn
    before = optimizer.state[layer.key_param_tokens]["momentum_buffer"].clone()
    model.grow({"num_ffn_param_tokens": 9}, optimizer, step=3)
    after = optimizer.state[layer.key_param_tokens]["momentum_buffer"]
    assert torch.equal(after[:6], before)
    assert torch.equal(after[6:], torch.zeros(3, 8))
    train(model, optimizer, range(3, 5))
    assert layer.key_param_tokens[6:].abs().min() > 0


def test_what_is_configured_holds_over_what_was_saved():
    model = tokenformer()
    optimizer = build_optimizer(model, MUON)
    scheduler = LambdaLR(optimizer, lambda step: lr_scale(step, 100, MUON))
    now = Optim(optimizer="muon", learning_rate=0.5, momentum=0.5, weight_decay=0.0, warmup_steps=0)
    reapply(scheduler, now)
    assert {group["initial_lr"] for group in optimizer.param_groups} == set(scheduler.base_lrs) == {0.5}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    train(model, optimizer, [0])
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_momentum_warms_up_from_below():
    assert [round(warmed_momentum(step, 0.95, 4), 3) for step in range(6)] == [0.85, 0.875, 0.9, 0.925, 0.95, 0.95]
    assert warmed_momentum(0, 0.95, 0) == 0.95
    assert warmed_momentum(0, 0.5, 10) == 0.5  # never above its peak


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 0.0},
        {"momentum": 1.0},
        {"momentum_warmup_steps": -1},
        {"head_learning_rate": 0.0},
        {"restart_steps": [0]},
        {"restart_steps": [5, 5]},
        {"restart_steps": [5, 4]},
    ],
)
def test_recipes_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"--optim.{next(iter(wrong))}"):
        Optim(**wrong)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_restarted_schedule_is_whole_schedules_one_after_the_other(schedule):
    optim = Optim(schedule=schedule, warmup_steps=3, restart_steps=[10, 30])
    one = Optim(schedule=schedule, warmup_steps=3)
    expected = [lr_scale(step, length, one) for length in (10, 20, 15) for step in range(length)]
    assert [lr_scale(step, 45, optim) for step in range(45)] == expected
    assert lr_scale(45, 45, optim) == lr_scale(15, 15, one)  # what a scheduler asks for after the last step


def test_a_restart_that_would_never_come_is_refused():
    with pytest.raises(ValueError, match="--optim.restart_steps .* must lie below the 30 steps"):
        lr_scale(0, 30, Optim(restart_steps=[10, 30]))


def test_a_recipe_saved_before_there_were_restarts_still_loads():
    saved = {name: value for name, value in asdict(Optim()).items() if name != "restart_steps"}
    assert Optim(**saved) == Optim()
