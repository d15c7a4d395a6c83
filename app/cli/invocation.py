"""The command that is being carried out, as it was typed: it stands in records and beside the numbers of reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


@contextmanager
def carrying_out(args: Sequence[str]) -> Iterator[None]:
    """Remember the arguments of `python -m app` while they are carried out."""
    token = _typed.set(tuple(args))
    try:
        yield
    finally:
        _typed.reset(token)


def typed_arguments() -> list[str]:
    """The verb and its options; empty outside the command line."""
    return list(_typed.get())


def command_line() -> str:
    """The whole command, as a user types it."""
    return " ".join(["python -m app", *_typed.get()])
