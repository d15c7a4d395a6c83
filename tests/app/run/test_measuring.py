"""validate and test measure the whole split unless told otherwise now, and say what they measured."""

from pathlib import Path

import pytest
import torch
import yaml

from callbacks.record_file import read_record
from tests.app.test_cli import SIZES, call, tiny  # noqa: F401 - a fixture among them

LAST = "runs/x/checkpoints/last.ckpt"


@pytest.fixture
def quick(tiny, tmp_path, monkeypatch) -> Path:  # noqa: F811
    """The folder of a run that was quick about its validations."""
    monkeypatch.chdir(tmp_path)
    limits = "--trainer.limit_val_batches 1 --trainer.limit_test_batches 1 --trainer.limit_predict_batches 1"
    assert call(f"{tiny} {limits} --run_dir runs/x").code == 0
    return Path("runs/x")


def measured(folder: Path) -> dict:
    return read_record(folder / "record.json")["measured"]


def test_a_fit_that_measured_a_part_is_measured_whole_afterwards(quick):
    assert measured(quick) == {"val": {"batches": 1, "of": 10}}
    for verb, split in (("validate", "val"), ("test", "test")):
        code, out, err = call(f"{verb} --ckpt_path {LAST}")
        assert (code, err) == (0, "")
        assert out.startswith(f"{LAST}, step 12\nall 10 batches of the {split} split\n")
    assert measured(quick)["test"] == {"batches": 10, "of": 10, "checkpoint": LAST, "step": 12}
    assert call(f"predict --ckpt_path {LAST}").code == 0
    assert len((quick / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) > 4 * 8


@pytest.mark.parametrize("option", ["--trainer.limit_test_batches 2", "--config part.yaml"])
def test_a_part_is_measured_where_that_is_asked_for_now_and_marked(quick, option):
    Path("part.yaml").write_text("trainer: {limit_test_batches: 2}\n", encoding="utf-8")
    out = call(f"test --ckpt_path best {option}").out
    best = "runs/x/checkpoints/best.ckpt"
    assert out.startswith(f"{best}, step 10\n2 of 10 batches of the test split, a part of it\n")
    assert measured(quick)["test"] == {"batches": 2, "of": 10, "checkpoint": best, "step": 10}
    assert measured(quick)["val"] == {"batches": 1, "of": 10}


def test_a_run_from_before_an_option_goes_on_as_it_was(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    potatolm = "--model PotatoLM --model.d_model 16 --model.num_heads 2 --model.card sum"
    assert call(f"{tiny.replace(f'--model TokenFormer {SIZES}', potatolm)} --run_dir runs/x").code == 0
    checkpoint, config = torch.load(LAST, weights_only=True), yaml.safe_load(Path("runs/x/config.yaml").read_text())
    del checkpoint["hyper_parameters"]["card"], config["model"]["init_args"]["card"]
    torch.save(checkpoint, LAST)
    torch.save(checkpoint, "alone.ckpt")
    Path("runs/x/config.yaml").write_text(yaml.safe_dump(config))
    assert call("generate alone.ckpt --prompt the --max_new_tokens 2").code == 0
    for steps in (14, 16):
        assert call(f"fit --ckpt_path {LAST} --trainer.max_steps {steps}")[::2] == (0, "")
        assert yaml.safe_load(Path("runs/x/config.yaml").read_text())["model"]["init_args"]["card"] == "sum"
