"""Commands in processes of their own that need no start-up: forked from this one, which has imported everything."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from app.__main__ import main

OUTPUT, ERRORS = "output.txt", "errors.txt"
TIMEOUT = 300.0  # seconds that no command of the tests takes, on the slowest machine
NOTHING: Mapping[str, str] = MappingProxyType({})


def begin(line: str, folder: Path, environment: Mapping[str, str] = NOTHING) -> int:
    """Carry out `python -m app LINE` in a folder, which gets its output; returns the leader of a new group."""
    for name in (OUTPUT, ERRORS):
        (folder / name).touch()
    if (pid := os.fork()) == 0:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.update(environment)
        for number, name in ((1, OUTPUT), (2, ERRORS)):
            with Path(name).open("a", encoding="utf-8") as file:
                os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os._exit(exit_code(line))
    with suppress(OSError):  # the child may have done it, or have ended
        os.setpgid(pid, pid)
    return pid


def begin_ranks(line: str, folder: Path, number: int = 2) -> Sequence[int]:
    """Carry out the command in so many processes, as a cluster starts them; returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    return [begin(line, folder, place | {"LOCAL_RANK": str(rank)}) for rank in range(number)]


def exit_code(line: str) -> int:
    """Of the command, as the interpreter would give it."""
    try:
        return main(line.split())
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def wait_for(words: str, folder: Path) -> None:
    """Wait until the output in the folder says so."""
    deadline = time.monotonic() + TIMEOUT
    while words not in (said := (folder / OUTPUT).read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def tell(pid: int, number: int) -> None:
    """Send a signal to the group of a process, its workers included."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def end(pid: int, seconds: float = TIMEOUT, number: int = signal.SIGKILL) -> int:
    """The exit code of a process; after so many seconds its group is told the signal."""
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.002)
    if not ended[0]:
        tell(pid, number)
        ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1])
