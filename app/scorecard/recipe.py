"""What a search found best for the Transformer, for each task, and the recipe by which candidates go.

A candidate has one configuration and one recipe for all tasks, the baseline one of each for each task: whoever is as
good equals a specialist. Of one layer, attention copies and recalls without positions, with a short convolution that
lets each position see the three before it; to recall it has one head of the whole width. To read it has rotary
positions of a small base beside the convolution. Where they come from: `results/searched_*.json`.
"""

from __future__ import annotations

import math
from typing import Any

RECIPE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.0}
COPYING_RECIPE: dict[str, Any] = {
    "optimizer": "adamw", "learning_rate": 3.372e-2, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95,
}  # fmt: skip
READING_RECIPE: dict[str, Any] = {
    "optimizer": "muon", "learning_rate": 9.8e-3, "matrix_learning_rate": 0.03, "embedding_learning_rate": 0.49,
    "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-10, "momentum_warmup_steps": 300,
    "muon_scale": "original", "schedule": "wsd", "warmup_steps": 0, "min_lr_ratio": 0.0,
}  # fmt: skip
HEAD_WIDTH = 16  # of the baseline that reads


def strongest(task: str, d_model: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and recipe of the one-layer Transformer of this width that is best at a task."""
    options: dict[str, Any] = {"local_mixing": "conv"}
    if task == "char_text":
        heads = math.gcd(max(1, d_model // HEAD_WIDTH), d_model // 2)  # that divide the width, each into pairs
        return options | {"num_heads": heads, "rope_base": 100.0}, READING_RECIPE
    options["positions"] = "none"
    if task == "copying":
        return options | {"num_heads": math.gcd(4, d_model)}, COPYING_RECIPE
    return options | {"num_heads": 1, "tie_embeddings": True}, RECIPE
