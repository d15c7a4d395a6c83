"""Carrying out a command as it was typed: its words stand in records and beside the numbers of reports.

What cannot go on ends in one line on standard error: a user's mistake with exit code 2, a fault of the program with
exit code 1 and its traceback in a file. `GREENHOUSE_TRACEBACK=1` shows where a message came from.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from rich import get_console

from app.cli.faults import fault_message, is_short_of_memory, memory_message, one_line
from app.machine import is_first_process, wants_traceback
from app.stops import stopped_by_signals

QUIET = "--quiet"
TALKING = (  # verbs that talk while they run
    "fit", "validate", "test", "predict", "generate", "bench", "scorecard", "compare", "scaling", "growth-study",
)  # fmt: skip
_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def carried_out(args: Sequence[str], run: Callable[[str, list[str]], int]) -> int:
    """The exit code of `run` with the verb and the options of `python -m app`, which are remembered meanwhile."""
    token = _typed.set(tuple(args))
    replace_what_cannot_be_shown()
    try:
        with stopped_by_signals():
            return run(args[0], list(args[1:]))
    except BrokenPipeError:  # whoever read what we print has gone; the rest has no place to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if wants_traceback():
            raise
        if is_short_of_memory(error):
            return fail(memory_message(error))
        if isinstance(error, ValueError | OSError):
            return fail(str(error))
        print(f"error: {fault_message(error, command_line())}", file=sys.stderr)  # each process tells its own fault
        return 1
    finally:
        _typed.reset(token)


@contextmanager
def quiet_if_asked(verb: str, args: Sequence[str]) -> Iterator[list[str]]:
    """The options without `--quiet`, which silences rich's own console, the one place of what verbs say as they run.

    Results, warnings and errors are printed all the same.
    """
    wants_quiet = verb in TALKING and QUIET in args
    console = get_console()
    before, console.quiet = console.quiet, console.quiet or wants_quiet
    try:
        yield [arg for arg in args if not (wants_quiet and arg == QUIET)]
    finally:
        console.quiet = before


def fail(message: str) -> int:
    """Print one line on standard error, on the first process only; returns exit code 2."""
    if is_first_process():
        print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


def replace_what_cannot_be_shown() -> None:
    """Let characters that the terminal's encoding lacks come out as `?`: no text is cut off half-way for their sake."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def typed_arguments() -> list[str]:
    """The verb and its options; empty outside the command line."""
    return list(_typed.get())


def command_line() -> str:
    """The whole command, as a user types it."""
    return " ".join(["python -m app", *_typed.get()])
