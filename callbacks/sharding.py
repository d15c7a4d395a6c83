"""FSDP2: parameters, gradients and optimizer state in parts, one a process; checkpoints go from and to any strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

from callbacks.lightning_internals import DataParallelSharding
from models.base import LanguageModel
from models.optim import named_state, regrouped


class FSDP2(DataParallelSharding):
    """Shards parameters, gradients and optimizer state over all processes; checkpoints are single whole files."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that any strategy wrote; returns what is in it beside weights and optimizer states.

        Lightning's own would take the numbers of the parameters in an optimizer state for places in
        `model.parameters()`, while only files of this strategy number them so.
        """
        model, whole = (
            cast(LanguageModel, self.model),
            StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
        )
        checkpoint: dict[str, Any] = torch.load(Path(checkpoint_path), map_location="cpu", weights_only=True, mmap=True)
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=whole)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            state = named_state(regrouped(saved, optimizer, model), model)
            set_optimizer_state_dict(model, optimizer, state, options=whole)
        return checkpoint
