"""No training step waits for the device but at logging steps: on the CPU we see what would wait on a GPU."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.__main__ import main
from callbacks import checkpoints
from callbacks.common import at_logging_step
from callbacks.lightning_internals import BatchLoop
from models.base import LanguageModel

aten = torch.ops.aten
WAITING = {  # operators whose result, or its shape, is fetched from the device; lift_fresh sends it what Python has
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.lift_fresh,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # wait where the index is a mask
TEXT = "--data CharText --data.corpus {text} --data.seq_len 16 --samples.max_new_tokens 0"
COPYING, RECALL = "--data Copying", "--data AssociativeRecall"
MUON = "--optim.optimizer muon"
GROWN = "--growth.steps [1] --growth.factor [2] --growth.init zero_keys --growth.tau ramped"
FITS = {
    "Transformer": f"{COPYING} {MUON}",
    "TokenFormer": f"{TEXT} {GROWN}",
    "Palm": f"{RECALL} {MUON}",
    "PotatoLM": COPYING,
    "SparseRNN": f"{TEXT} {MUON}",
    "TrajectoryLM": RECALL,
}


class Watch(TorchDispatchMode):
    """Remembers, step by step, which of our lines called what waits."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operator = func.overloadpacket
        is_masked = operator in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if operator in WAITING or is_masked:
            ours = [frame for frame in traceback.extract_stack()[:-1] if "site-packages" not in frame.filename]
            self.lines[-1].append(f"{operator}: {ours[-1].filename}:{ours[-1].lineno}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("model", FITS)
def test_a_step_that_logs_nothing_does_not_wait(model, tmp_path, monkeypatch, tiny_text):
    """From the batch's arrival to what follows its end, callbacks and a bar included."""
    watch = Watch()
    start, after = LanguageModel.on_train_batch_start, BatchLoop.call_after_batch

    def begin(self, batch, batch_idx):
        watch.lines.append([])
        watch.__enter__()
        start(self, batch, batch_idx)

    def end(self):
        after(self)
        watch.__exit__(None, None, None)

    monkeypatch.setattr(LanguageModel, "on_train_batch_start", begin)
    monkeypatch.setattr(BatchLoop, "call_after_batch", end)
    monkeypatch.setattr(checkpoints, "may_wait", at_logging_step)  # as on a GPU
    monkeypatch.chdir(tmp_path)
    fit = f"fit --model {model} --model.d_model 16 --data.batch_size 2 {FITS[model].format(text=tiny_text)}"
    trainer = "--trainer.accelerator cpu --trainer.max_steps 4 --trainer.limit_val_batches 0"
    assert main(f"{fit} {trainer} --trainer.log_every_n_steps 2 --trainer.enable_progress_bar true".split()) == 0
    _, logged, not_logged, _ = watch.lines
    assert logged, "what waits is not seen any more"
    assert not_logged == []
