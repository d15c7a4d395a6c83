"""What is said when a command cannot go on: one line, of a few rows at most, whatever a library has to say about it.

A traceback is for a file: it is kept beside the work, and the line tells its name.
"""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from pathlib import Path

LONGEST = 600  # characters of a message, a few rows of a terminal
BEGIN, END = 400, 180  # what is kept of a longer one: what is wrong, and at the end the way out
SHORT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Storage size calculation overflowed", re.I)


def one_line(message: str) -> str:
    """A message on one line, its middle left out where it is long."""
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    return line if len(line) <= LONGEST else f"{line[:BEGIN]} ... {line[-END:]}"


def is_short_of_memory(error: Exception) -> bool:
    """Whether an exception of Python, NumPy or PyTorch says that something does not fit into memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(SHORT_OF_MEMORY.search(str(error)))
    )


def memory_message(error: Exception) -> str:
    """What did not fit into memory, and what to do about it."""
    what = one_line(str(error)).partition(". ")[0] or "no memory is left"
    return f"out of memory ({what}); take smaller sizes, such as those of --data and --model, or a larger machine"


def fault_message(error: Exception, command: str) -> str:
    """One line about an exception that is nobody's mistake but ours, whose traceback goes to a file."""
    reason = one_line(f"{type(error).__name__}: {error}".removesuffix(": "))
    return f"{reason}; this is a fault of the program, please report it with {keep_traceback(error, command)}"


def keep_traceback(error: Exception, command: str) -> Path:
    """The file that tells where an exception came from: in this folder, or the system's for temporary files."""
    text = f"$ {command}\n" + "".join(traceback.format_exception(error))
    name = f"greenhouse-traceback-{os.getpid()}.txt"
    try:
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
        return Path(name)
    except OSError:
        path = Path(tempfile.gettempdir()) / name
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path
