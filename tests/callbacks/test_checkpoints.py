"""The best model is the best model, and checkpoints are saved between optimizer steps only."""

import shutil
import signal

import lightning as L
import pytest
import torch

from callbacks import AtomicCheckpointIO, Checkpoints, Narrator, Record, RunStopped, Throughput, TimeLimit
from callbacks.checkpoints import all_finite, best_score
from datamodules.base import SampleStream, TaskData
from models import Transformer
from models.optim import Optim
from tests.app.run.test_resume import assert_same_run

SCORES = {4: 3.0, 8: 1.0, 12: 2.0, 16: 0.5, 20: 4.0}  # validation loss after so many steps
STEPS, BEST = 20, 16


class Digits(TaskData):
    """Random digits, eight batches in what is called an epoch."""

    vocab_size = 10

    def __init__(self, num_workers=0):
        super().__init__(batch_size=2, num_workers=num_workers, seed=1)
        self.save_hyperparameters()

    def train_stream(self):
        return SampleStream("train", self.generate, 16, self.batch_size, endless=True)

    def eval_streams(self, stage):
        return [SampleStream("all", self.generate, 4, 2)]

    @staticmethod
    def generate(number, indices_B):
        generator = torch.Generator().manual_seed(int(indices_B[0]))
        tokens_BT = torch.randint(10, (len(indices_B), 6), generator=generator)
        return tokens_BT[:, :-1], tokens_BT[:, 1:].clone()


class Scripted(Transformer):
    """Whose validation loss is what the script says."""

    def _finish_evaluation(self, prefix):
        self.log("val/loss", SCORES.get(self.trainer.global_step, 9.0))


class StopIn(L.Callback):
    """Sends SIGTERM once, at a moment of a step."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def _stop(self, trainer, moment):
        if (trainer.global_step, moment) == (self.step, self.moment):
            self.step = -1
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_start(self, trainer, *args):
        self._stop(trainer, "training")

    def on_validation_batch_start(self, trainer, *args):
        self._stop(trainer, "validation")


def fit(folder, *callbacks, kind=Transformer, resume=None, workers=0, every=5, **options):
    """Train; returns the folder of checkpoints."""
    L.seed_everything(1, verbose=False)
    model = kind(vocab_size=10, d_model=8, num_heads=2, dropout=0.1)
    model.optim = Optim(schedule="constant", warmup_steps=2)
    trainer = L.Trainer(
        **{"max_steps": STEPS, "max_epochs": -1, "val_check_interval": 4, "check_val_every_n_epoch": None} | options,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[Checkpoints(every_n_steps=every), Throughput(), *callbacks], default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    stops = any(isinstance(callback, StopIn) for callback in callbacks)
    try:
        trainer.fit(model, datamodule=Digits(workers), ckpt_path=resume)
        assert not stops
    except RunStopped:
        assert stops
    return folder / "checkpoints"


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), kind=Scripted)


@pytest.mark.parametrize(
    ("step", "moment"), [(8, "validation"), (9, "training"), (12, "validation"), (16, "training"), (19, "training")]
)
def test_the_best_model_is_that_of_the_uninterrupted_run_wherever_the_folder_went(tmp_path, whole, step, moment):
    assert (read(whole / "best.ckpt")["global_step"], best_score(whole / "best.ckpt")) == (BEST, SCORES[BEST])
    cut = fit(tmp_path / "cut", StopIn(step, moment), kind=Scripted)
    shutil.move(cut.parent, tmp_path / "moved")
    cut = fit(tmp_path / "moved", kind=Scripted, resume=tmp_path / "moved/checkpoints/last.ckpt")
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_run(cut / name, whole / name)
        assert read(cut / name)["callbacks"]["Checkpoints"] == read(whole / name)["callbacks"]["Checkpoints"]


def test_a_stop_in_the_best_validation_does_not_lose_it(tmp_path):
    cut = fit(tmp_path, StopIn(BEST, "validation"), kind=Scripted)
    assert read(cut / "best.ckpt")["global_step"] == read(cut / "last.ckpt")["global_step"] == BEST
    assert read(cut / "last.ckpt")["callbacks"]["Checkpoints"] == {"best_score": SCORES[BEST]}


def test_a_best_of_after_the_checkpoint_is_made_again(tmp_path, whole):
    """Killed at step 19, best.ckpt is of step 16 and last.ckpt of step 10."""
    cut = fit(tmp_path / "cut", StopIn(10, "training"), kind=Scripted, every=10, val_check_interval=5)
    shutil.copy(whole / "best.ckpt", cut / "best.ckpt")
    fit(tmp_path / "cut", kind=Scripted, every=10, resume=cut / "last.ckpt")
    assert read(cut / "best.ckpt")["global_step"] == BEST


def test_a_score_without_its_model_is_none_to_beat(tmp_path):
    """What goes on in another folder begins a best.ckpt of its own."""
    first = fit(tmp_path / "one", kind=Scripted, max_steps=16)
    second = fit(tmp_path / "two", kind=Scripted, resume=first / "last.ckpt")
    assert read(second / "best.ckpt")["global_step"] == 20
    assert best_score(second / "best.ckpt") == SCORES[20]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_no_best(tmp_path, monkeypatch, score):
    monkeypatch.setitem(SCORES, 4, score)
    assert read(fit(tmp_path, kind=Scripted, max_steps=4) / "last.ckpt")["global_step"] == 4
    assert not (tmp_path / "checkpoints/best.ckpt").exists()


# In the middle of an accumulation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulate", "interval"), [(2, 5), (3, 4)])
@pytest.mark.parametrize("moment", ["training", "validation"])
def test_a_stop_around_a_validation_inside_an_accumulation_is_bit_for_bit(tmp_path, accumulate, moment, interval):
    """The validation is due at a batch, and comes at the end of the step that the batch belongs to."""
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": interval, "max_steps": 9}
    whole = fit(tmp_path / "whole", **options)
    step = -(-interval // accumulate)
    cut = fit(tmp_path / "cut", StopIn(step, moment), **options)
    assert read(cut / "last.ckpt")["global_step"] == step + (moment == "training")
    cut = fit(tmp_path / "cut", resume=cut / "last.ckpt", **options)
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_run(cut / name, whole / name)
        assert read(cut / name)["global_step"] * accumulate == batches(cut / name)


def batches(path):
    return read(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


class EndAt(L.Callback):
    """Ends the fit at a batch, as EarlyStopping or a limit of time may."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= batch_idx + 1 == self.batch


@pytest.mark.parametrize("batch", [4, 6])
def test_a_fit_that_is_told_to_end_in_an_accumulation_finishes_it(tmp_path, batch):
    options = {"accumulate_grad_batches": 3, "limit_val_batches": 0}
    cut = fit(tmp_path / "cut", EndAt(batch), **options)
    assert read(cut / "last.ckpt")["global_step"] == 2
    assert_same_run(fit(tmp_path / "cut", resume=cut / "last.ckpt", **options) / "last.ckpt",
                    fit(tmp_path / "whole", **options) / "last.ckpt")  # fmt: skip


def test_eight_batches_are_accumulated_over_the_ends_of_epochs(tmp_path):
    last = fit(tmp_path, accumulate_grad_batches=3, max_steps=10, limit_val_batches=0) / "last.ckpt"
    assert read(last)["greenhouse"]["tokens_seen"] == 10 * 3 * 2 * 5


def test_one_set_of_workers_serves_the_whole_run(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            import multiprocessing

            seen.append(frozenset(child.pid for child in multiprocessing.active_children()))

    fit(tmp_path, Look(), workers=1, limit_val_batches=0)
    assert len(seen) == STEPS > 8
    assert len(set(seen)) == 1


# A Trainer of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_trainer_that_counts_epochs_leaves_its_end_and_goes_on_from_it(tmp_path, accumulate):
    options = {"max_steps": -1, "accumulate_grad_batches": accumulate, "check_val_every_n_epoch": 1}
    options |= {"val_check_interval": 1.0}
    whole = fit(tmp_path / "whole", max_epochs=3, **options)
    cut = fit(tmp_path / "cut", max_epochs=1, **options)
    assert batches(cut / "last.ckpt") == 8
    cut = fit(tmp_path / "cut", max_epochs=3, resume=cut / "last.ckpt", **options)
    assert_same_run(cut / "last.ckpt", whole / "last.ckpt")
    assert batches(cut / "last.ckpt") == 24


def test_a_trial_leaves_nothing(tmp_path, capsys):
    fit(tmp_path / "x", Record(), Narrator(), fast_dev_run=2)
    assert not (tmp_path / "x").exists()
    assert "nothing saved, as --trainer.fast_dev_run asks" in capsys.readouterr().out


def test_the_time_of_a_call_is_that_of_the_call(tmp_path, monkeypatch):
    now = [5e6]  # seconds since the machine was started
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Tick(L.Callback):
        def on_train_batch_start(self, *args):
            now[0] += 60

    limit = "00:00:03:00"
    for steps in (3, 6):
        resume = tmp_path / "checkpoints/last.ckpt" if steps > 3 else None
        fit(tmp_path, Tick(), TimeLimit(limit), Narrator(), max_steps=-1, limit_val_batches=0, resume=resume)
        assert read(tmp_path / "checkpoints/last.ckpt")["global_step"] == steps


def test_a_run_with_nothing_left_takes_no_time(tmp_path, monkeypatch, capsys):
    last = fit(tmp_path, max_steps=3) / "last.ckpt"
    monkeypatch.setattr("time.monotonic", lambda: 5e6)
    fit(tmp_path, Narrator(), Record(), max_steps=3, resume=last)
    assert "done in 0 s; " in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["parameters", "buffers"])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(value, place):
    module = torch.nn.BatchNorm1d(3)
    assert all_finite(module)
    next(iter(getattr(module, place)())).data[1] = value
    assert not all_finite(module)
