"""The machine that the program runs on: devices, threads, cores, and every environment variable that it reads or sets.

PyTorch is imported by the functions that use it, so that what only asks for cores or variables starts at once.
"""

from __future__ import annotations

import codecs
import ctypes
import locale
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda"]
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}  # Lightning's names of devices
MatmulPrecision = Literal["highest", "high", "medium"]  # PyTorch's names
TRACEBACK_VARIABLE = "GREENHOUSE_TRACEBACK"  # set by a user who wants to see where a message comes from
RUN_DIR_VARIABLE = "GREENHOUSE_RUN_DIR"  # tells the processes that the first one launches which folder it chose
FIRST_PROCESS_VARIABLE = "GREENHOUSE_FIRST_PROCESS"  # and which process that is
UTF8_VARIABLE = "PYTHONUTF8"
ENCODING_VARIABLE = "PYTHONIOENCODING"
NODE_VARIABLES = ("NODE_RANK", "GROUP_RANK")  # by hand, and of torchrun
GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
COMPILER_VARIABLE = "CXX"  # names the C++ compiler that PyTorch takes
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # of torchrun, SLURM and Lightning's own launcher


# Environment variables ------------------------------------------------------------------------------------------------


def wants_traceback() -> bool:
    """Whether the user asked to see where a message comes from."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))


def begin_in_utf8() -> None:
    """Begin this program anew in Python's UTF-8 mode where the locale has another encoding; else do nothing.

    Options, names of files, YAML and texts are UTF-8 whatever the locale, also where other people's code reads them.
    What is printed keeps the encoding of the terminal.
    """
    is_utf8 = sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8"
    if is_utf8 or os.environ.get(UTF8_VARIABLE) == "1":
        return
    environment = os.environ | {UTF8_VARIABLE: "1", ENCODING_VARIABLE: sys.stdout.encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_first_process() -> bool:
    """Whether this is the process of rank 0, as far as launchers have told."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def knows_its_node() -> bool:
    """Whether a launcher, or a user by hand, has told which of several machines this is."""
    return any(name in os.environ for name in NODE_VARIABLES)


def announce_run_dir(run_dir: Path) -> None:
    """Tell the processes that this one launches which folder the run has; one that was launched itself tells nobody."""
    if announced_run_dir() is None:
        os.environ |= {RUN_DIR_VARIABLE: str(run_dir), FIRST_PROCESS_VARIABLE: str(os.getpid())}


def announced_run_dir() -> Path | None:
    """The folder that the process which launched this one chose; None in the first process."""
    launched = os.environ.get(RUN_DIR_VARIABLE) if os.environ.get("LOCAL_RANK", "0") != "0" else None
    return Path(launched) if launched else None


def has_lost_first_process() -> bool:
    """Whether the process that launched this one has ended; False in a process that was not launched so."""
    return announced_run_dir() is not None and os.environ.get(FIRST_PROCESS_VARIABLE) != str(os.getppid())


def only_gpu(number: int) -> dict[str, str]:
    """The environment in which a process sees only the `number`-th of the GPUs that this one sees."""
    given = os.environ.get(GPUS_VARIABLE)
    return {GPUS_VARIABLE: given.split(",")[number] if given else str(number)}


# Devices and threads --------------------------------------------------------------------------------------------------


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that PyTorch sees."""
    import torch

    return torch.cuda.device_count()


def find_device(device: Device) -> str:
    """Device to run on, "cpu" or "cuda"; ValueError where there is no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def check_compiler(compile: bool) -> None:
    """Raise ValueError if PyTorch is to compile and there is no C++ compiler."""
    names = (os.environ.get(COMPILER_VARIABLE, "g++"), "g++", "clang++")
    if compile and not any(map(shutil.which, names)):
        raise ValueError("--compile needs a C++ compiler such as g++, and none is here; install one, or leave it out")


def keep_freed_memory() -> None:
    """Let the C library keep for the next tensors what the last ones have freed, where it is glibc.

    Else it gives large pieces back, and gets them again at the next training step, page by page, each filled with
    zeros: at batches of 64 x 256 tokens that was a sixth of a step's time on a CPU. What is kept stays with the process
    until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads for a while; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def float32_products(precision: MatmulPrecision) -> Iterator[None]:
    """Let PyTorch multiply matrices in float32 with this precision for a while."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def about_machine(device: str) -> dict[str, Any]:
    """What times depend on, as plain values."""
    import torch

    gpu = {"GPU": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "CPU": cpu_model(),
        **gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux tells it, elsewhere as Python does."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name.group(1).strip() if name else platform.processor() or platform.machine()
