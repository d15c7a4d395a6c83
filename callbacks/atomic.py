"""Files that are written whole or not at all, in UTF-8; JSON that every reader knows. Imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def save_atomically(write: Callable[[Path], Any], path: Path) -> None:
    """Let `write` make a temporary file beside `path`, then put it in place; on any failure `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise OSError(f"could not write {path} ({error}); what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    save_atomically(lambda temporary: temporary.write_text(text, encoding="utf-8"), path)


def json_text(content: Any, indent: int | None = None) -> str:
    """Content as JSON: null for NaN and infinities, text for what JSON has no form for, such as paths."""
    return json.dumps(finite(content), indent=indent, default=str, allow_nan=False)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file."""
    write_text(path, json_text(content, indent) + "\n")


def finite(value: Any) -> Any:
    """`value` with null for every number that JSON does not know: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
