"""Half precision: gradients under a loss scaler, zero scores, and the streaming form under autocast."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

from models import TrajectoryLM, Transformer
from models.optim import Optim, grad_norm
from models.tokenformer import NORMALIZATIONS
from tests.models.test_models import MODELS

MUON = Optim(optimizer="muon")


class Gradients(L.Callback):
    """Remembers what was logged of each step's gradients, and what the optimizer was given."""

    def __init__(self):
        self.logged, self.given = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.logged.append(float(trainer.callback_metrics["train/grad_norm"]))
        self.given.append(float(grad_norm(pl_module.parameters())))


def train(tmp_path, optim, **options):
    torch.manual_seed(0)
    tokens = torch.randint(11, (16, 9))
    model, seen = Transformer(vocab_size=11, d_model=16, num_heads=2), Gradients()
    model.optim = optim
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", callbacks=[seen], default_root_dir=tmp_path, gradient_clip_val=0.1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=4))
    return model, seen


@pytest.mark.parametrize("optim", [Optim(), MUON])
def test_a_loss_scaler_is_out_of_the_gradients_before_they_are_clipped_and_logged(tmp_path, optim):
    model, seen = train(tmp_path, optim)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled_model, scaled = train(tmp_path, optim, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaled.logged == pytest.approx(seen.logged, rel=0.02)
    assert scaled.given == pytest.approx([0.1] * 4, rel=1e-3)
    for half, full in zip(scaled_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(half, full, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_scores_of_any_size_are_normalised_in_half_precision(name, dtype):
    """Zero, as small and as large as the type has them: values and gradients are those of float64, or near."""
    tau = torch.tensor(8.0)
    scores = torch.randn(6, 64) * torch.tensor([0.0, 1e-7, 1e-3, 1.0, 10.0, 60.0])[:, None]
    scores = scores.to(dtype).requires_grad_()
    exact = scores.detach().double().requires_grad_()
    values = NORMALIZATIONS[name](scores, tau)
    expected = NORMALIZATIONS[name](exact, tau.double())
    assert values.dtype == dtype
    weights = torch.randn(6, 64)
    (gradients,) = torch.autograd.grad((values.float() * weights).sum(), scores)
    (exact_gradients,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert values.isfinite().all()
    assert gradients.isfinite().all()
    ordinary = slice(3, None)  # smaller ones are damped by what keeps the norm from zero
    rounding = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(values[ordinary].double(), expected[ordinary], rtol=rounding, atol=rounding)
    torch.testing.assert_close(
        gradients[ordinary].double(), exact_gradients[ordinary], rtol=8 * rounding, atol=8 * rounding
    )


@pytest.mark.parametrize("name", MODELS)
def test_streaming_equals_parallel_under_autocast(name):
    """But for what bfloat16 rounds."""
    model, generator = MODELS[name](num_layers=2).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tokens = torch.randint(11, (3, 40))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens)
        state, logits = model.init_state(3), []
        for token_B in tokens.unbind(1):
            logits_BV, state = model.step(token_B, state)
            logits.append(logits_BV)
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=0, atol=0.05)


def test_trajectory_memory_selects_by_a_zero_trajectory_in_float16():
    model = TrajectoryLM(vocab_size=5, d_model=8).half()
    links = model.index(torch.zeros(1, 3, dtype=torch.int64))
    assert model.layers[0].memory(torch.zeros(1, 3, 8, dtype=torch.float16), links).isfinite().all()
