"""What was found best for the Transformer: its options, and the recipe of training, by which candidates go, too."""

from __future__ import annotations

from typing import Any

# Of rope_base 100 and 10,000, with and without a shift, this reads text and copies best; one for all tasks.
BASELINE_OPTIONS: dict[str, Any] = {"rope_base": 100.0, "local_mixing": "shift"}
HEAD_WIDTH = 16  # as in the defaults of 8 heads at width 128
RECIPE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.0}
