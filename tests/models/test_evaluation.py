"""How a split is measured: by what its DataModule says, or by what suits any text if there is nobody to say it."""

import lightning as L
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils.data import DataLoader

from models import LanguageModel, Transformer
from models.metrics import METRICS, EvalMetrics

ROWS, SEQ_LEN, VOCAB_SIZE = 8, 16, 5


def loader(seed: int = 1) -> DataLoader:
    rows = torch.randint(VOCAB_SIZE, (ROWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(seed))
    return DataLoader([(row[:-1], row[1:]) for row in rows], batch_size=4)


class Said(L.LightningDataModule):
    """A user's own DataModule, which says how it is measured."""

    def __init__(self, **evaluation):
        super().__init__()
        self.said = evaluation

    def evaluation(self, stage):
        return self.said

    def val_dataloader(self):
        return [loader(), loader(2)]


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.fixture
def model() -> LanguageModel:
    return Transformer(vocab_size=VOCAB_SIZE, d_model=8, num_heads=2)


def validate(model, data) -> dict[str, float]:
    (results, *_) = trainer().validate(model, data, verbose=False)
    return results


def test_plain_loaders_train_validate_and_test(model):
    fit = trainer(max_steps=2, val_check_interval=2, num_sanity_val_steps=0)
    fit.fit(model, loader(), loader())
    assert model.tokens_seen == 2 * 4 * SEQ_LEN
    names = {"loss", "bits_per_char", "accuracy"}
    assert {f"val/{name}" for name in names} <= fit.callback_metrics.keys()
    (results,) = fit.test(model, loader(), verbose=False)
    assert results.keys() == {f"test/{name}" for name in names}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by torchmetrics, which copies states
def test_who_knows_how_many_are_scored_is_measured_without_waiting_for_the_device():
    with FakeTensorMode():  # whose tensors have no data, so that whoever asks for some fails
        model = Transformer(vocab_size=VOCAB_SIZE, d_model=8, num_heads=2)
        tokens_BT = torch.zeros(4, SEQ_LEN, dtype=torch.int64)
        model._eval_metrics = [EvalMetrics(METRICS, VOCAB_SIZE, model.device)]
        model.loss((tokens_BT, tokens_BT), num_scored=4 * SEQ_LEN)
        model.evaluate((tokens_BT, tokens_BT, 4 * SEQ_LEN), 0)
        with pytest.raises(DynamicOutputShapeException):
            model.evaluate((tokens_BT, tokens_BT), 0)


def test_several_plain_loaders_are_numbered_slices(model):
    results = validate(model, [loader(), loader()])
    assert {"val/loss", "val/loss/0", "val/loss/1", "val/accuracy/1"} <= results.keys()
    assert results["val/loss"] == pytest.approx(results["val/loss/0"])


def test_a_datamodule_says_how_it_is_measured(model):
    results = validate(model, Said(metrics=("exact_match",), slices=("near", "far"), headline=("far",)))
    assert results["val/loss"] == results["val/loss/far"] != results["val/loss/near"]
    assert results.keys() == {
        f"val/{name}{where}" for name in ("loss", "exact_match") for where in ("", "/near", "/far")
    }


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"metric": ("accuracy",)}, "metric"),
        ({"metrics": ("acuracy",)}, "acuracy.*bits_per_char, accuracy"),
        ({"slices": ("near",)}, "near.*2"),
        ({"slices": ("near", "far"), "headline": ("fat",)}, "fat.*near, far"),
    ],
    ids=["name", "metric", "slices", "headline"],
)
def test_a_slip_in_what_it_says_is_told(model, evaluation, message):
    with pytest.raises((TypeError, ValueError), match=message):
        validate(model, Said(**evaluation))
