"""How a command ends that is told to, or that has lost a process: by an exit code and one line, with nothing left over.

Ctrl-C and SIGTERM end a command at once, with exit code 130 or 143, from its first moment on; while a run trains,
callbacks.Checkpoints answers them instead, and saves first. The processes of a run end together: if one is lost, a
thread in each of the others notices, also where the others wait for it in a collective operation, for ever.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from app.machine import announced_run_dir, has_lost_first_process

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL = 0.5  # seconds between two looks
GRACE = 3.0  # seconds in which a process may end by itself when another is gone, with a better reason
# What Gloo, NCCL, the store and a DataLoader say of a process that is gone.
LOST_PROCESS = re.compile(
    r"connection (was )?(closed|reset)|closed by peer|broken pipe|remote process|socket|gloo|DataLoader worker",
    re.I,
)


# Signals --------------------------------------------------------------------------------------------------------------


def stop(signum: int, frame: FrameType | None) -> NoReturn:
    """End this process, its `finally` blocks carried out, with the exit code of the signal."""
    sys.exit(128 + signum)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block; in a thread that is not the main one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Processes of one run -------------------------------------------------------------------------------------------------


def in_background(watch: Callable[[], None]) -> None:
    """Run `watch` in a thread that does not outlive the process."""
    threading.Thread(target=watch, daemon=True).start()


def end_here(reason: str) -> NoReturn:
    """End this process from any of its threads, wherever the main one is stuck."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def end_with_first_process() -> None:
    """Let this process, if another one launched it to train the same run, end some time after that one."""
    if announced_run_dir() is None:
        return

    def watch() -> None:
        while not has_lost_first_process():
            time.sleep(POLL)
        time.sleep(GRACE)
        end_here("the first process of this run is gone; those that it launched end, too")

    in_background(watch)


def watch_launched(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let this process and the further processes of its run end some time after one of these has failed."""

    def watch() -> None:
        while any(process.poll() is None for process in processes) and not lost(processes):
            time.sleep(POLL)
        if gone := lost(processes):
            time.sleep(GRACE)
            for process in processes:
                process.kill()
            end_here(gone)

    in_background(watch)


def lost(processes: Sequence[subprocess.Popen[bytes]]) -> str:
    """Which of the launched processes has failed, and how, in words; empty if none has."""
    for rank, process in enumerate(processes, start=1):
        if code := process.poll():
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"process {rank} of this run {how}"
    return ""


@contextmanager
def lost_processes_told(way_out: Callable[[], str]) -> Iterator[None]:
    """Turn what those say of a lost process who wait for it into a ChildProcessError of one line, with the way out."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed has no narrower class for what Gloo says
        if not LOST_PROCESS.search(str(error)):
            raise
        raise ChildProcessError(f"another process of this run is gone; {way_out()}") from error
