"""How long a run is: epochs in steps, and what is left of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.run.length import check_steps, in_steps

DEFAULTS = {
    "max_steps": 1000, "max_epochs": -1, "min_steps": None, "min_epochs": None, "limit_train_batches": None,
    "val_check_interval": 250, "check_val_every_n_epoch": None, "accumulate_grad_batches": 1, "fast_dev_run": False,
    "overfit_batches": 0.0, "devices": 2,
}  # fmt: skip


def counted(batches=100, **options):
    return in_steps(DEFAULTS | options, batches, 250)


@given(epochs=st.integers(0, 5), batches=st.integers(1, 50), accumulate=st.integers(1, 9), steps=st.integers(-1, 300))
def test_epochs_are_steps_and_the_first_limit_ends_the_run(epochs, batches, accumulate, steps):
    options = {"max_epochs": epochs, "max_steps": steps, "accumulate_grad_batches": accumulate}
    max_steps = counted(batches, **options)["max_steps"]
    if max_steps != steps:  # no batch of the epochs is left out, and the last step has one of them
        assert 0 <= max_steps * accumulate - epochs * batches < accumulate
        assert steps < 0 or max_steps < steps
    assert counted(batches, **options)["max_epochs"] == -1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_steps": 1000, "val_check_interval": 250, "min_steps": None, "devices": 2}),
        ({"max_steps": -1}, {"max_steps": -1}),
        ({"max_steps": -1, "max_epochs": 2}, {"max_steps": 200}),
        ({"max_epochs": 2, "limit_train_batches": 30}, {"max_steps": 60, "limit_train_batches": None}),
        ({"max_epochs": 2, "limit_train_batches": 0.25}, {"max_steps": 50}),
        ({"max_epochs": 2, "limit_train_batches": 300}, {"max_steps": 200}),
        ({"min_epochs": 1}, {"min_steps": 100, "min_epochs": 0}),
        ({"min_epochs": 1, "min_steps": 300}, {"min_steps": 300}),
        ({"val_check_interval": 0.25}, {"val_check_interval": 25}),
        ({"val_check_interval": 0.25, "limit_train_batches": 10}, {"val_check_interval": 2}),
        ({"val_check_interval": None}, {"val_check_interval": 100}),
        ({"val_check_interval": 1}, {"val_check_interval": 1}),
        ({"val_check_interval": "00:00:10:00"}, {"val_check_interval": "00:00:10:00"}),
        ({"check_val_every_n_epoch": 3}, {"val_check_interval": 300, "check_val_every_n_epoch": None}),
        ({"fast_dev_run": True, "max_epochs": 3}, {"max_epochs": 3, "max_steps": 1000}),
        ({"overfit_batches": 2, "max_epochs": 3}, {"max_epochs": 3, "max_steps": 1000}),
    ],
)
def test_what_is_counted_in_epochs_is_counted_in_steps(options, expected):
    assert counted(**options).items() >= expected.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train_batches": 10}, "--trainer.limit_train_batches 10 .* give --trainer.max_epochs"),
        ({"limit_train_batches": 0, "max_epochs": 1}, "--trainer.limit_train_batches 0 .* trains nothing"),
        ({"limit_train_batches": 0.001, "max_epochs": 1}, "--trainer.limit_train_batches 0.001"),
        ({"check_val_every_n_epoch": 1, "val_check_interval": 7}, "--trainer.val_check_interval 7"),
        ({"check_val_every_n_epoch": 0}, "--trainer.check_val_every_n_epoch 0"),
    ],
)
def test_what_says_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        counted(**options)


@pytest.mark.parametrize(
    ("options", "max_steps", "done", "finishes", "message"),
    [
        ({"max_steps": 0}, 0, 0, False, "--trainer.max_steps 0: that trains nothing; give more steps"),
        ({"max_epochs": 0}, 0, 0, False, "--trainer.max_epochs 0: that trains nothing; give more epochs"),
        ({"max_steps": 9}, 9, 10, True, "--trainer.max_steps 9: the checkpoint is at step 10 already"),
        ({"max_steps": 10}, 10, 10, False, "--trainer.max_steps 10: the checkpoint is at step 10 already"),
        ({"max_epochs": 1}, 10, 10, False, "--trainer.max_epochs 1: the checkpoint is at step 10 already"),
        ({"max_steps": 10}, 10, 10, True, None),
        ({"max_steps": 11}, 11, 10, False, None),
        ({"max_steps": -1}, -1, 10, False, None),
    ],
)
def test_a_fit_must_have_something_left_to_do(options, max_steps, done, finishes, message):
    if message is None:
        check_steps(DEFAULTS | options, max_steps, done, finishes=finishes)
        return
    with pytest.raises(ValueError, match=message):
        check_steps(DEFAULTS | options, max_steps, done, finishes=finishes)
