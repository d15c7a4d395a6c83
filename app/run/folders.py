"""Run folders: each holds config.yaml, record.json, TensorBoard events and checkpoints/{last,best}.ckpt.

A new run never writes into the folder of another: where the wished name is taken, the next free number is added.
`last` and `best` as a checkpoint mean those of the newest run of that name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from app.cli.yaml_text import read_yaml
from app.machine import announced_run_dir

RUNS = Path("runs")
PROBE = ".writable"  # made and removed at once; other processes of the same run may see it


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


def family(base: Path) -> list[Path]:
    """Existing run folders named `base`, `base`-2, `base`-3 …, newest last."""
    pattern = re.compile(re.escape(base.name) + r"(-\d+)?")
    siblings = base.parent.iterdir() if base.parent.is_dir() else []
    return sorted(
        (p for p in siblings if p.is_dir() and pattern.fullmatch(p.name)), key=lambda p: (len(p.name), p.name)
    )


def is_run_of(folder: Path, base: Path) -> bool:
    """Whether `folder` is one of the family of `base`."""
    return folder.resolve() in [member.resolve() for member in family(base)]


def new_run_dir(base: Path) -> Path:
    """`base` if it holds no run yet, else `base` with the next free number."""
    if announced := announced_run_dir():
        return announced
    taken = {p.name for p in family(base) if any(f.name != PROBE for f in p.iterdir())}
    names = [base.name, *(f"{base.name}-{n}" for n in range(2, len(taken) + 3))]
    return base.with_name(next(name for name in names if name not in taken))


def make_writable(run_dir: Path) -> bool:
    """Make the folder, if it is not there; returns whether it is new. ValueError if nothing can be written there."""
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / PROBE
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--run_dir {run_dir} cannot be written ({error.strerror}); name another folder") from error
    return is_new


def find_checkpoint(wish: str, run_dir: str | None) -> Path:
    """The file meant by `wish`: a path, or `last` or `best` of the newest run of that name (of all, without a name)."""
    if wish not in ("last", "best"):
        return Path(wish)
    folders = family(Path(run_dir)) if run_dir else list(RUNS.iterdir()) if RUNS.is_dir() else []
    found = [f for folder in folders if (f := folder / "checkpoints" / f"{wish}.ckpt").is_file()]
    if not found:
        raise ValueError(f"--ckpt_path {wish}: no run in {run_dir or RUNS} has a checkpoints/{wish}.ckpt yet")
    return max(found, key=lambda file: file.stat().st_mtime)


def run_dir_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.resolve().parent.parent
    is_run = checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file()
    return Path(os.path.relpath(folder)) if is_run else None
