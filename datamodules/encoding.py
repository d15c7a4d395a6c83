"""How a text becomes numbers: each character's place in the sorted vocabulary, in the smallest integers that hold it.

The text is read twice, piece by piece: what it consists of, then what it says. A large one is encoded once, into a file
that every process maps into memory:

    the places | JSON: vocabulary, checksum of the text, ... | bytes of the JSON (8, little-endian) | MARK

The file's name ends in digits of the text's files, sizes and times: a text is found again by looking for a name. Where
only another name is found the text is read, and the file renamed if the checksum is the same. A file is written beside
its place and renamed, by the process that holds the text's lock, which is let go with the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from rich import get_console

from datamodules.locks import alone
from datamodules.texts import Text, characters, digested

SMALL = 1 << 23  # bytes of files below which a text is encoded at each start
TRAIN_PERCENT = 90  # of every text, from its begin on
FORMAT = 1  # of the file; it counts among what its name is made of
MARK = b"\nPLACES\n"
END = 8 + len(MARK)
NAME_DIGITS = 16

Stamp = list[tuple[str, int, int]]  # of each file its path, size in bytes, and time of change in nanoseconds


@dataclass(frozen=True)
class Found:
    """What a text consists of: its characters, sorted; how many it has in all; the SHA-256 of its bytes."""

    vocabulary: str
    length: int
    sha256: str


@dataclass(frozen=True)
class Encoding:
    """A text as numbers.

    Attributes:
        found: What it consists of.
        train_counts: How often each character of the vocabulary occurs in the first `TRAIN_PERCENT`.
        ids: Each character's place in the vocabulary.
    """

    found: Found
    train_counts: Sequence[int]
    ids: NDArray[Any]


# Characters to places -------------------------------------------------------------------------------------------------


def survey(text: Text) -> Found:
    """Read what a text consists of; ValueError if it cannot be read, or is empty."""
    present, length, digest = np.zeros(sys.maxunicode + 1, dtype=np.bool_), 0, hashlib.sha256()
    for codes in characters(text, digest):
        counts = np.bincount(codes)
        present[: len(counts)] |= counts > 0
        length += len(codes)
    if not length:
        raise ValueError(f"{text.option} {text.name} is empty; give a file with text")
    return Found("".join(map(chr, np.flatnonzero(present))), length, digest.hexdigest())


def smallest_type(vocabulary: str) -> np.dtype[Any]:
    """The smallest unsigned integers that hold all places."""
    return np.min_scalar_type(len(vocabulary) - 1)


def write_places(text: Text, found: Found, file: BinaryIO) -> list[int]:
    """Write each character's place in the vocabulary; returns how often each occurs in the first `TRAIN_PERCENT`."""
    places = np.zeros(sys.maxunicode + 1, dtype=smallest_type(found.vocabulary))
    places[list(map(ord, found.vocabulary))] = np.arange(len(found.vocabulary))
    counts_V, left = np.zeros(len(found.vocabulary), dtype=np.int64), found.length * TRAIN_PERCENT // 100
    for codes in characters(text):
        ids = np.take(places, codes)
        file.write(ids.data)
        counts_V += np.bincount(ids[:left], minlength=len(counts_V))
        left = max(0, left - len(ids))
    return counts_V.tolist()


def encode(text: Text) -> Encoding:
    """Encode a text in memory."""
    text.check()
    now = stamp(text)
    found, file = survey(text), io.BytesIO()
    counts = write_places(text, found, file)
    check_unchanged(text, now)
    return Encoding(found, counts, np.frombuffer(file.getbuffer(), dtype=smallest_type(found.vocabulary)))


def stamp(text: Text) -> Stamp:
    """By what it is seen that the files of a text are those that they were."""
    try:
        states = [(str(file.resolve()), file.stat()) for file in text.files]
    except OSError as error:
        raise ValueError(f"{text.option} {text.name} cannot be read ({error}); give a readable text file") from error
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]


def check_unchanged(text: Text, now: Stamp) -> None:
    """Raise ValueError if the stamp of a text is not `now` any more."""
    if stamp(text) != now:
        raise ValueError(f"{text.option} {text.name} was changed while it was read; begin again when it is complete")


# Places in a file -----------------------------------------------------------------------------------------------------


class MappedIds(np.ndarray[Any, Any]):
    """Places that lie in a file, mapped into memory: a slice is mapped, too, all else that is read is a copy.

    After each reading the pages are let go: they stay in the system's cache, one for all processes, and count in none,
    so that an epoch through a text does not make each process as large as the text. Pickled as where they lie, so that
    a worker process maps them and gets no copy.

    Args:
        path: The file.
        dtype: Their type.
        first: How many places of the file come before.
        length: How many there are.
    """

    path: str = ""  # none for what was computed of them
    first: int = 0
    map: mmap.mmap

    def __new__(cls, path: str, dtype: str, first: int, length: int) -> MappedIds:
        """Map the file."""
        with Path(path).open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ids = np.frombuffer(whole, dtype, length, first * np.dtype(dtype).itemsize).view(cls)
        ids.path, ids.first, ids.map = path, first, whole
        return ids

    def __getitem__(self, key: Any) -> Any:
        if not self.path:
            return np.asarray(self)[key]
        if isinstance(key, slice) and key.step is None:
            part = super().__getitem__(key)
            part.path, part.first, part.map = self.path, self.first + key.indices(len(self))[0], self.map
            return part
        read = np.asarray(self)[key]
        self.map.madvise(mmap.MADV_DONTNEED)
        return read

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.path:
            return np.asarray(self).__reduce__()
        return MappedIds, (self.path, self.dtype.str, self.first, len(self))


def read_encoding(path: Path) -> Encoding | None:
    """The encoding in a file, mapped; None if there is no such file, or it is not whole. Raises OSError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END))
            end = file.read()
            about_size = int.from_bytes(end[:8], "little")
            file.seek(max(0, size - END - about_size))
            about = json.loads(file.read(about_size)) if end.endswith(MARK) and about_size < size else {}
        found, dtype = Found(**about["found"]), smallest_type(about["found"]["vocabulary"])
        if about["format"] != FORMAT or size != found.length * dtype.itemsize + about_size + END:
            return None
        ids = MappedIds(str(path.resolve()), dtype.str, 0, found.length)
        return Encoding(found, about["train_counts"], ids)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_encoding(text: Text, now: Stamp, path: Path) -> None:
    """Encode a text into a file, which is there whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        found = survey(text)
        with temporary.open("wb") as file:
            counts = write_places(text, found, file)
            about = json.dumps({"format": FORMAT, "found": asdict(found), "train_counts": counts}).encode()
            file.write(about + len(about).to_bytes(8, "little") + MARK)
            file.flush()
            os.fsync(file.fileno())
        check_unchanged(text, now)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def stem(text: Text, names: Sequence[str]) -> str:
    """What the names of a text's files of places begin with: its name, and digits of where it lies."""
    places = [text.encoding, *sorted(str(Path(name).expanduser().resolve()) for name in names)]
    return f"{Path(names[0]).name[:NAME_DIGITS]}-{digits(places)}"


def digits(content: Any) -> str:
    """Digits that stand for some content, and change with it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:NAME_DIGITS]


def encoded(text: Text, names: Sequence[str], folder: Path) -> Encoding:
    """A text's encoding: of a large one mapped from a file in a folder, where it is kept, else in memory.

    Args:
        text: What to encode.
        names: The files and folders that it was asked for by.
        folder: Where encodings are kept.
    """
    now = stamp(text)
    if sum(size for _, size, _ in now) < SMALL:
        return encode(text)
    name = stem(text, names)
    path = folder / f"{name}-{digits([FORMAT, now])}.places"
    try:
        return read_encoding(path) or keep(text, now, name, path)
    except OSError as error:
        rank_zero_warn(
            f"the encoded text of {text.option} {text.name} cannot be kept in {folder} ({error.strerror or error}): "
            "each process encodes it at each start, in memory"
        )
        return encode(text)


def keep(text: Text, now: Stamp, name: str, path: Path) -> Encoding:
    """Encode a text into a file, once for all processes, unless only its time has changed. Raises OSError."""
    with alone(path.with_name(name)):
        if there := read_encoding(path):  # while we waited for the lock
            return there
        for leftover in path.parent.glob(f".{escape(name)}-*.tmp"):  # of a process that was killed
            leftover.unlink()
        text.check()
        older = list(path.parent.glob(f"{escape(name)}-*.places"))
        same = older_encoding(text, now, older)
        if same:
            same.replace(path)
        else:
            get_console().print(
                f"encoding {text.name}, once, into {path}", markup=False, highlight=False, soft_wrap=True
            )
            write_encoding(text, now, path)
        for other in older:
            if other not in (path, same):
                other.unlink()
    kept = read_encoding(path)
    if kept is None:
        raise OSError(f"{path} is damaged")
    return kept


def older_encoding(text: Text, now: Stamp, files: Sequence[Path]) -> Path | None:
    """The file that has this very text, if there is one, by its checksum."""
    known = {there.found.sha256: file for file in files if (there := read_encoding(file))}
    if not known:
        return None
    digest = hashlib.sha256()
    for document in text.documents:
        for _ in digested(document.read(), digest):
            pass
    check_unchanged(text, now)
    return known.get(digest.hexdigest())
