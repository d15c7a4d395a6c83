"""What was found best for the Transformer: its options for each task, and the recipe by which candidates go, too.

A candidate has one configuration for all tasks, the baseline one for each: whoever is as good equals a specialist. Of
one layer, attention recalls with one head of the whole width, without positions; a short convolution lets each position
see the three before it.
"""

from __future__ import annotations

from typing import Any

WITHOUT_POSITIONS: dict[str, Any] = {
    "num_heads": 1, "positions": "none", "local_mixing": "conv", "tie_embeddings": True,
}  # fmt: skip
BASELINE_OPTIONS: dict[str, dict[str, Any]] = {  # by task
    "copying": WITHOUT_POSITIONS,
    "recall": WITHOUT_POSITIONS,
    "char_text": {"num_heads": 4, "positions": "none", "local_mixing": "conv"},
    "binding": WITHOUT_POSITIONS,
}
RECIPE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.0}
