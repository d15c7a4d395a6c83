"""Commands in processes of their own that need no start-up: forked from this one, which has imported everything."""

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from app.__main__ import main

OUTPUT = "output.txt"


def begin(line: str, folder: Path) -> int:
    """Carry out `python -m app LINE` in a folder, its output in a file there; returns the leader of a new group."""
    (folder / OUTPUT).touch()
    if (pid := os.fork()) == 0:
        os.setpgid(0, 0)
        os.chdir(folder)
        with Path(OUTPUT).open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os._exit(exit_code(line))
    with suppress(OSError):  # the child may have done it, or have ended
        os.setpgid(pid, pid)
    return pid


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


def tell(pid: int, number: int) -> None:
    """Send a signal to the group of a process, its workers included."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def end(pid: int, seconds: float, number: int = signal.SIGKILL) -> int:
    """The exit code of a process; after so many seconds its group is told the signal."""
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.002)
    if not ended[0]:
        tell(pid, number)
        ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1])
