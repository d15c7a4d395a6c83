"""One process at a time: what many begin at once, such as a download, the first of them does for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is alone with `path`, and be it; whoever is killed is it no longer. Raises OSError.

    The folder is made if it is not there; the lock, a file beside `path`, is gone afterwards. Who opened it before and
    gets it then, sees that it has no name any more, and begins anew with a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
