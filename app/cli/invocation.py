"""Carrying out a command as it was typed: its words stand in records and beside the numbers of reports.

A user's mistake ends in one line on standard error and exit code 2. `GREENHOUSE_TRACEBACK=1` shows where a message
came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from app.machine import is_first_process, wants_traceback

_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def carried_out(args: Sequence[str], run: Callable[[str, list[str]], int]) -> int:
    """The exit code of `run` with the verb and the options of `python -m app`, which are remembered meanwhile."""
    token = _typed.set(tuple(args))
    try:
        return run(args[0], list(args[1:]))
    except BrokenPipeError:  # whoever read what we print has gone; the rest has no place to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if wants_traceback():
            raise
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    finally:
        _typed.reset(token)


def fail(message: str) -> int:
    """Print one line on standard error, on the first process only; returns exit code 2."""
    if is_first_process():
        print(f"error: {message}", file=sys.stderr)
    return 2


def typed_arguments() -> list[str]:
    """The verb and its options; empty outside the command line."""
    return list(_typed.get())


def command_line() -> str:
    """The whole command, as a user types it."""
    return " ".join(["python -m app", *_typed.get()])
