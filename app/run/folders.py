"""Run folders: each holds config.yaml, record.json, TensorBoard events and checkpoints/{last,best}.ckpt.

A new run never writes into the folder of another: where the wished name is taken, the next free number is added. The
process that trains holds the folder's lock, so that no other trains the same run at the same time; a process that dies
lets go of it. `last` and `best` as a checkpoint mean those of the newest run (of that name).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout, lock_descriptor

from app.cli.yaml_text import read_yaml
from callbacks.record_file import CHECKPOINTS, RECORD, last_checkpoint, read_record

RUNS = Path("runs")
CONFIG = "config.yaml"
LOCK = ".lock"  # with the process that holds it, or was the last to do so, and its machine
AUTO = "auto"  # as a checkpoint: the last of the run's own folder, if there is one
OWN_FILES = (CONFIG, RECORD, f"{CHECKPOINTS}/best.ckpt", "hparams.yaml", "events.out.tfevents.*")


def options_before_parsing(args: list[str]) -> dict[str, str]:
    """Values of --run_dir and --ckpt_path among `args`, else from the --config files among them."""
    found: dict[str, str] = {}
    for index, arg in enumerate(args):
        name, _, value = arg.partition("=")
        value = value or (args[index + 1] if index + 1 < len(args) else "")
        if name in ("--config", "-c") and Path(value).is_file():
            content = read_yaml(Path(value))
            found |= {key: str(content[key]) for key in ("run_dir", "ckpt_path") if content.get(key)}
    for index, arg in enumerate(args):
        name, separator, value = arg.partition("=")
        if name in ("--run_dir", "--ckpt_path"):
            found[name[2:]] = value if separator else (args[index + 1] if index + 1 < len(args) else "")
    return found


# Which runs there are -------------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a run was begun in the folder."""
    return (folder / CONFIG).is_file() or (folder / CHECKPOINTS).is_dir()


def is_finished(run: Path) -> bool:
    """Whether the record of the run says so."""
    try:
        return bool(read_record(run / RECORD)["status"] == "finished")
    except (ValueError, KeyError):
        return False


def family(base: Path) -> list[Path]:
    """Existing folders whose name is that of `base`, or that and a number."""
    pattern = re.compile(re.escape(base.name) + r"(-\d+)?")
    siblings = base.parent.iterdir() if base.parent.is_dir() else []
    return [folder for folder in siblings if folder.is_dir() and pattern.fullmatch(folder.name)]


def is_run_of(folder: Path, base: Path) -> bool:
    """Whether `folder` is one of the family of `base`."""
    return folder.resolve() in [member.resolve() for member in family(base)]


def began(run: Path) -> tuple[int, int, str]:
    """When the run was begun or resumed, as far as its files tell; of equal times, the higher number is the newer."""
    traces = [path for path in (run / LOCK, run / CONFIG) if path.exists()][:1] or (run / CHECKPOINTS).glob("*.ckpt")
    return max((path.stat().st_mtime_ns for path in traces), default=0), len(run.name), run.name


def find_checkpoint(wish: str, run_dir: str | None = None, option: str = "--ckpt_path") -> Path:
    """The file meant by `wish`: a path, a run folder (its last), or `last` or `best` of the newest run of that name.

    Without a name it is the newest of all. ValueError if that run has no such checkpoint: an older one that has it is
    named, but not taken for it.
    """
    if wish not in ("last", "best"):
        path = Path(wish)
        if path.is_dir() and not last_checkpoint(path).is_file():
            raise ValueError(f"{option} {wish}: there is no {last_checkpoint(path)} yet")
        return last_checkpoint(path) if path.is_dir() else path
    folders = family(Path(run_dir)) if run_dir else list(RUNS.iterdir()) if RUNS.is_dir() else []
    runs = sorted(filter(is_run, folders), key=began, reverse=True)
    files = [file for run in runs if (file := run / CHECKPOINTS / f"{wish}.ckpt").is_file()]
    if not files:
        raise ValueError(f"{option} {wish}: no run in {run_dir or RUNS} has a checkpoints/{wish}.ckpt yet")
    if files[0].parent.parent != runs[0]:
        raise ValueError(
            f"{option} {wish}: the newest run, {runs[0]}, has no checkpoints/{wish}.ckpt yet; name another run's file, "
            f"such as {files[0]}"
        )
    return files[0]


def run_dir_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.resolve().parent.parent
    lies_in_run = checkpoint.parent.name == CHECKPOINTS and (folder / CONFIG).is_file()
    return Path(os.path.relpath(folder)) if lies_in_run else None


# Who works where ------------------------------------------------------------------------------------------------------


def cannot_be_written(option: str, folder: Path, error: OSError) -> ValueError:
    """The mistake of naming a folder where nothing can be written."""
    return ValueError(f"{option} {folder} cannot be written ({error.strerror}); name another folder")


def acquired(folder: Path) -> FileLock | None:
    """The lock of a folder, held; None if another process holds it. It is let go by `release`, or with the process."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


def is_held(folder: Path) -> bool:
    """Whether a process works in the folder; its files stay as they are."""
    lock = folder / LOCK
    try:  # to write, as NFS asks for that; to read, where it is another user's
        with lock.open("r+b") if os.access(lock, os.W_OK) else lock.open("rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


@contextmanager
def held(folder: Path, option: str) -> Iterator[Path]:
    """Work in a folder alone; ValueError if another process does, or if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquired(folder)
    except OSError as error:
        raise cannot_be_written(option, folder, error) from error
    if lock is None:
        holder = (folder / LOCK).read_text(encoding="utf-8") or "another process"
        raise ValueError(f"{option} {folder}: {holder} works there; wait until it ends, or name another folder")
    try:
        for leftover in (*folder.glob(".*.tmp"), *folder.glob(f"{CHECKPOINTS}/.*.tmp")):  # of a process that was killed
            leftover.unlink()
        yield folder
    finally:
        lock.release()


def is_free(folder: Path) -> bool:
    """Whether nothing but a lock lies in the folder."""
    return all(path.name == LOCK for path in folder.iterdir())


def reserved(base: Path) -> tuple[Path, FileLock]:
    """The first of `base`, `base`-2, `base`-3 … that is free, made if it is not there, and its lock. Raises OSError."""
    for number in count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
        if is_free(folder) and (lock := acquired(folder)):
            if is_free(folder):
                return folder, lock
            lock.release()
    raise AssertionError("numbers have no end")


@contextmanager
def new_run_folder(base: Path) -> Iterator[Path]:
    """A folder of its own for a new run, held: `base`, or else `base` with the next free number."""
    try:
        folder, lock = reserved(base)
    except OSError as error:
        raise cannot_be_written("--run_dir", base, error) from error
    try:
        with removed_if_worthless(folder):
            yield folder
    finally:
        lock.release()


@contextmanager
def same_run_folder(folder: Path) -> Iterator[Path]:
    """Exactly this folder, held, for a run that goes on from its last checkpoint, or begins where there is none.

    What a process left there that was killed before its first checkpoint is removed.
    """
    with held(folder, "--run_dir"):
        if not last_checkpoint(folder).exists():
            for leftover in (path for pattern in OWN_FILES for path in folder.glob(pattern)):
                leftover.unlink()
            with suppress(OSError):
                (folder / CHECKPOINTS).rmdir()
        with removed_if_worthless(folder) if is_free(folder) else nullcontext():
            yield folder


@contextmanager
def removed_if_worthless(folder: Path) -> Iterator[None]:
    """Remove the folder if the run in it ends early, with neither a checkpoint nor a record of how training failed."""
    try:
        yield
    except BaseException as error:
        if not is_worth_keeping(folder, error):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def is_worth_keeping(folder: Path, error: BaseException) -> bool:
    """Whether a run that ended by `error` has left a checkpoint, or a record of how its training failed."""
    if last_checkpoint(folder).exists():
        return True
    try:
        return isinstance(error, Exception) and read_record(folder / RECORD)["step"] > 0
    except (ValueError, KeyError):
        return False


def writable(folder: Path) -> Path:
    """The folder; ValueError if nothing can be written there."""
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--run_dir {folder} cannot be written; name another folder")
    return folder


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, for what a trial of one batch may write."""
    with TemporaryDirectory(prefix="greenhouse-") as folder:
        yield Path(folder)
