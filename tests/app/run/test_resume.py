"""A run that is interrupted anywhere and resumed is the same run, bit for bit; growing a file is growing in the fit."""

import copy
import signal
from functools import partialmethod

import lightning as L
import pytest
import torch

from app.run.checkpoints import read_checkpoint
from app.run.grow import grow
from callbacks import AtomicCheckpointIO, Checkpoints, Growth, RunStopped
from callbacks.atomic import save_atomically
from datamodules import CharText
from models import TokenFormer, TrajectoryLM, Transformer
from models.optim import Optim

STEPS, EPOCH, VALIDATION = 24, 10, 7  # steps in all, batches an epoch, batches between validations
SCHEDULE = {"steps": [6, 15], "num_param_tokens": [6, 9], "num_ffn_param_tokens": [8, 12], "rewarm_steps": 3}


class StopBefore(L.Callback):
    """Sends a signal to this process while the given optimizer step is under way."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step - 1:
            self.step = 0  # once: a second signal would stop without a checkpoint
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; " * 300)
    return path


MUON = Optim(optimizer="muon", warmup_steps=2, momentum_warmup_steps=12)


def fit(
    text, folder, *, stop=None, ckpt=None, accumulate=1, schedule=SCHEDULE, model=None, optim=None, **trainer_options
):
    L.seed_everything(3, verbose=False)
    data = CharText(corpus=str(text), seq_len=16, batch_size=4, seed=3)
    model = model or TokenFormer(
        vocab_size=data.vocab_size, d_model=16, num_heads=2, num_param_tokens=4, num_ffn_param_tokens=8, dropout=0.1
    )
    model.optim = optim or model.optim
    callbacks = [Growth(**schedule), Checkpoints(every_n_steps=5), *([StopBefore(stop)] if stop else [])]
    options = {"max_steps": STEPS, "limit_train_batches": EPOCH, "val_check_interval": VALIDATION}
    options |= {"limit_val_batches": 1} | trainer_options
    trainer = L.Trainer(
        **options, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, default_root_dir=folder, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, accumulate_grad_batches=accumulate,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    if stop:
        with pytest.raises(RunStopped):
            trainer.fit(model, datamodule=data, ckpt_path=ckpt)
    else:
        trainer.fit(model, datamodule=data, ckpt_path=ckpt)
    return Checkpoints.directory(folder) / "last.ckpt"


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_run(a, b):
    a, b = read_checkpoint(a), read_checkpoint(b)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "greenhouse", "hyper_parameters", "global_step"):
        assert_equal(a[key], b[key], key)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    return fit(text, tmp_path_factory.mktemp("whole"))


# In turn: early, the batch before and after each growth, the end of an epoch, at and beside a validation, late.
@pytest.mark.parametrize("stop", [3, 6, 7, 10, 14, 15, 16, 20, 23])
def test_interrupted_and_resumed_is_the_same_run(text, uninterrupted, tmp_path, stop):
    last = fit(text, tmp_path, stop=stop)
    assert read_checkpoint(last)["global_step"] == stop
    assert_same_run(fit(text, tmp_path, ckpt=last), uninterrupted)


def test_interrupted_twice(text, uninterrupted, tmp_path):
    last = fit(text, tmp_path, stop=8)
    last = fit(text, tmp_path, ckpt=last, stop=17)
    assert_same_run(fit(text, tmp_path, ckpt=last), uninterrupted)


@pytest.mark.parametrize("options", [{}, {"optim": MUON, "precision": "bf16-mixed"}])
def test_random_dropout_is_that_of_an_uninterrupted_run(text, tmp_path, options):
    def run(folder, **more):
        torch.manual_seed(0)
        model = TrajectoryLM(vocab_size=len(set(text.read_text())), d_model=16, dropout=0.2)
        return fit(text, folder, model=model, schedule={}, **options, **more)

    last = run(tmp_path / "cut", stop=9)
    assert_same_run(run(tmp_path / "cut", ckpt=last), run(tmp_path / "whole"))


@pytest.mark.parametrize("optim", [Optim(), MUON])
def test_with_accumulation_it_stops_between_windows(text, tmp_path, optim):
    options = {"accumulate": 2, "max_steps": 12, "schedule": SCHEDULE | {"steps": [3, 8]}, "optim": optim}
    whole = fit(text, tmp_path / "whole", **options)
    last = fit(text, tmp_path / "cut", stop=5, **options)
    assert read_checkpoint(last)["global_step"] == 5
    assert_same_run(fit(text, tmp_path / "cut", ckpt=last, **options), whole)


@pytest.mark.parametrize(
    ("carry", "optim"),
    [("per_row", Optim()), ("per_row", MUON), ("mean", Optim()), ("zeros", Optim()), ("reset", MUON)],
)
def test_growing_the_file_is_growing_in_the_fit(text, tmp_path, carry, optim):
    schedule = {"steps": [6], "num_param_tokens": [7], "num_ffn_param_tokens": [12], "carry": carry, "rewarm_steps": 4}
    whole = fit(text, tmp_path / "whole", schedule=schedule, optim=optim)
    small = fit(text, tmp_path / "small", stop=6, schedule={}, optim=optim)
    grow(small, tmp_path / "grown.ckpt", num_param_tokens=7, num_ffn_param_tokens=12, carry=carry, rewarm_steps=4)
    assert_same_run(fit(text, tmp_path / "small", ckpt=tmp_path / "grown.ckpt", schedule={}, optim=optim), whole)


def test_a_checkpoint_from_after_growth_loads_by_lightning_too(text, uninterrupted):
    model = TokenFormer.load_from_checkpoint(uninterrupted, weights_only=True)
    assert model.parameter_token_sizes() == {"num_param_tokens": 9, "num_ffn_param_tokens": 12}
    assert [event["step"] for event in model.growth_events] == [6, 15]
    assert model.tokens_seen == STEPS * 4 * 16


@pytest.mark.parametrize("options", [{"num_ffn_param_tokens": 30}, {"factor": 2.0}, {"num_layers": 3}])
def test_grow_sizes(text, uninterrupted, tmp_path, options):
    grow(uninterrupted, tmp_path / "out.ckpt", **options)
    sizes = read_checkpoint(tmp_path / "out.ckpt")["greenhouse"]["growth_events"][-1]["to"]
    expected = [9, 12, 3] if "num_layers" in options else [18, 24, 1] if "factor" in options else [9, 30, 1]
    assert list(sizes.values()) == expected


def test_grow_refuses_with_nothing_written(text, uninterrupted, tmp_path):
    out = tmp_path / "out.ckpt"
    for arguments, message in (
        ({"num_param_tokens": 3}, "would shrink"),
        ({}, "nothing to grow"),
    ):
        with pytest.raises(ValueError, match=message):
            grow(uninterrupted, out, **arguments)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        grow(uninterrupted, out, factor=2.0)
    assert out.read_text() == "mine"


def test_a_model_without_parameter_tokens_grows_in_depth_alone(text, tmp_path):
    model = Transformer(vocab_size=len(set(text.read_text())), d_model=8, num_heads=2)
    last = fit(text, tmp_path, model=model, schedule={}, max_steps=2)
    with pytest.raises(ValueError, match="--factor: a Transformer has no parameter tokens; give --num_layers"):
        grow(last, tmp_path / "out.ckpt", factor=2.0)
    grow(last, tmp_path / "out.ckpt", num_layers=2)
    model = Transformer(vocab_size=len(set(text.read_text())), d_model=8, num_heads=2)
    fit(text, tmp_path, model=model, schedule={}, ckpt=tmp_path / "out.ckpt", max_steps=4)
    assert len(model.blocks()) == 2


def test_recipe_on_the_command_line_holds_on_resume(text, tmp_path):
    last = fit(text, tmp_path, stop=6, schedule={})
    model = TokenFormer(
        vocab_size=len(set(text.read_text())), d_model=16, num_heads=2, num_param_tokens=4, num_ffn_param_tokens=8
    )
    model.optim = Optim(learning_rate=0.5, schedule="constant", warmup_steps=0, beta2=0.5)
    state = read_checkpoint(fit(text, tmp_path, ckpt=last, schedule={}, model=model))["optimizer_states"][0]
    assert state["param_groups"][0]["lr"] == 0.5
    assert state["param_groups"][0]["betas"] == (0.9, 0.5)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("good")

    def full_disk(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="untouched"):
        save_atomically(full_disk, path)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(text, tmp_path):
    from callbacks.checkpoints import NonFiniteLossError

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 12:
                pl_module.head.weight.data[0, 0] = float("nan")

    data = CharText(corpus=str(text), seq_len=16, batch_size=4)
    model = Transformer(vocab_size=data.vocab_size, d_model=8, num_heads=2)
    trainer = L.Trainer(
        max_steps=30, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Poison(), Checkpoints(every_n_steps=5)], default_root_dir=tmp_path,
        limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"step 13.*last\.ckpt"):
        trainer.fit(model, datamodule=data)
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 10
    assert all(torch.isfinite(value).all() for value in copy.copy(checkpoint["state_dict"]).values())


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.01},
        {"optim": MUON, "gradient_clip_val": 0.01},
        {"schedule": SCHEDULE | {"tau": "ramped", "rewarm_steps": 8}},  # in the middle of which it stops
    ],
)
def test_growth_goes_with_precision_and_clipping_and_still_resumes(text, tmp_path, options):
    whole = fit(text, tmp_path / "whole", **options)
    last = fit(text, tmp_path / "cut", stop=12, **options)
    assert_same_run(fit(text, tmp_path / "cut", ckpt=last, **options), whole)
    assert max(event["logit_change"] for event in read_checkpoint(whole)["greenhouse"]["growth_events"]) <= 1e-6


def test_growth_goes_with_compile(text, tmp_path, monkeypatch):
    graphs = partialmethod(torch.nn.Module.compile, backend="eager")  # all of it but the making of machine code
    monkeypatch.setattr(torch.nn.Module, "compile", graphs)
    options = {"max_steps": 3, "limit_val_batches": 0, "schedule": {"steps": [2], "factor": [2.0]}}
    sizes = {"d_model": 16, "num_heads": 2, "num_param_tokens": 4, "num_ffn_param_tokens": 8}
    losses = []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = TokenFormer(vocab_size=len(set(text.read_text())), compile=compiled, **sizes)
        last = fit(text, tmp_path / str(compiled), model=model, **options)
        losses.append(read_checkpoint(last)["state_dict"])
    assert losses[0]["layers.0.ffn.key_param_tokens"].shape == (16, 16)
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value, rtol=0, atol=1e-4)
