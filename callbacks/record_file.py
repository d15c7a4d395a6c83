"""What a run leaves in its folder, for those who read it: the record and the last checkpoint; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
RECORD = "record.json"
CHECKPOINTS = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    """Where the run in `folder` keeps its last checkpoint."""
    return folder / CHECKPOINTS / LAST


def best_checkpoint(folder: Path) -> Path:
    """Where the run in `folder` keeps the checkpoint of least validation loss."""
    return folder / CHECKPOINTS / BEST


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; ValueError says what is wrong with the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a record: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("history"), list):
        raise ValueError(f"{path} is not a record of format {FORMAT}")
    return record
