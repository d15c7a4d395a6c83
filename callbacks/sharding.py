"""FSDP2: parameters, gradients and optimizer state in parts, one a process; checkpoints go from and to any strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

from callbacks.lightning_internals import DataParallelSharding
from models.base import LanguageModel
from models.optim import named_state, regrouped
from models.sharding import hand_over

WHOLE_FILE = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class FSDP2(DataParallelSharding):
    """Shards parameters, gradients and optimizer state over all processes; checkpoints are single whole files."""

    restore_checkpoint_after_setup = False  # as with other strategies: callbacks' on_fit_start knows what was loaded
    lightning_restore_optimizer = True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the weights of a checkpoint that any strategy wrote; returns all else that is in it."""
        checkpoint: dict[str, Any] = torch.load(Path(checkpoint_path), map_location="cpu", weights_only=True, mmap=True)
        set_model_state_dict(cast(LanguageModel, self.model), checkpoint.pop("state_dict"), options=WHOLE_FILE)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizer states of a checkpoint that any strategy wrote.

        Lightning's own would take the numbers of the parameters in an optimizer state for places in
        `model.parameters()`, while only files of this strategy number them so.
        """
        model = cast(LanguageModel, self.model)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = named_state(regrouped(saved, optimizer, model), model)
            set_optimizer_state_dict(model, optimizer, state, options=WHOLE_FILE)


@contextmanager
def whole(trainer: L.Trainer, model: LanguageModel) -> Iterator[None]:
    """Let the block find the model and its optimizer as they are in one process, and change both as it likes.

    Between two steps only, with no accumulation under way. DDP is wrapped anew afterwards, as it knows the old
    parameters' buckets and hooks. FSDP2 gathers before and shards afterwards: within the block, each process holds all
    parameters and all optimizer state.
    """
    strategy, optimizer = trainer.strategy, trainer.optimizers[0]
    if isinstance(strategy, DDPStrategy):
        strategy.model = model
        yield
        strategy.configure_ddp()
    elif model.is_sharded():
        hand_over(optimizer, model.gather())
        yield
        parameters = list(model.parameters())
        model.configure_model()
        hand_over(optimizer, dict(zip(parameters, model.parameters(), strict=True)))
    else:
        yield
