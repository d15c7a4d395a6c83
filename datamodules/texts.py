"""A text as characters, piece by piece: any number of files, packed or not, that never lie in memory as a whole.

Files are joined in the order of their paths with nothing between them, as `cat` does it. Their bytes are UTF-8, or
Latin-1 where that is said; a byte-order mark is no character.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 20  # bytes read at a time
ZSTD_PIECE = 1 << 14  # packed bytes, of which there may be a thousand times as many unpacked
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
OTHER_ENCODINGS = ("utf-16", "gb18030", "shift_jis", "euc-kr", "big5")  # and latin1, which can always be read
HOLDS_NUL = "holds NUL bytes, so it is no text; give a UTF-8 text file"


@dataclass(frozen=True)
class Document:
    """One file of a text.

    Attributes:
        name: As messages name it.
        read: Its bytes, unpacked, in pieces, from the begin each time; ValueError if they cannot be read.
    """

    name: str
    read: Callable[[], Iterator[bytes]]


def nothing() -> None:
    """The check of a text that needs none."""


@dataclass(frozen=True)
class Text:
    """Characters that can be read again and again.

    Attributes:
        name: As the user gave it.
        option: What it was given by, for messages.
        documents: Its parts, in order.
        files: The files that they are read from; none for a text that is in memory.
        encoding: utf-8 or latin-1.
        check: Raises ValueError unless the files are what they should be.
    """

    name: str
    option: str
    documents: Sequence[Document]
    files: Sequence[Path] = ()
    encoding: str = "utf-8"
    check: Callable[[], None] = nothing


# Files ----------------------------------------------------------------------------------------------------------------


def text_of_bytes(raw: bytes, name: str, option: str) -> Text:
    """A text that is in memory."""
    return Text(name, option, [Document(name, partial(unpacked, partial(io.BytesIO, raw)))])


def text_of_files(files: Sequence[Path], name: str, option: str, **more: Any) -> Text:
    """A text in files, in this order; `more` as Text takes it."""
    documents = [Document(str(file), partial(file_bytes, file, option)) for file in files]
    return Text(name, option, documents, files, **more)


def find_files(names: Iterable[str]) -> list[Path]:
    """The files of these names and in the folders of these names, however deep, each once, sorted by path.

    Of a folder's files those are left out whose name, or whose folder's name, begins with a dot. FileNotFoundError has
    a name that is neither a file nor a folder.
    """
    found: set[Path] = set()
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file())
            found.update(file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts))
        elif path.is_file():
            found.add(path)
        else:
            raise FileNotFoundError(name)
    return sorted(found, key=Path.as_posix)


def unpacked(opened: Callable[[], BinaryIO | gzip.GzipFile]) -> Iterator[bytes]:
    """The bytes of a file that unpacks itself, or is not packed."""
    with opened() as file:
        while piece := file.read(PIECE):
            yield piece


def zstd_unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a zst file, frame by frame. ModuleNotFoundError without zstandard, EOFError if the file is cut."""
    decompressor = importlib.import_module("zstandard").ZstdDecompressor()
    frame = None
    with path.open("rb") as file:
        while packed := file.read(ZSTD_PIECE):
            while packed:
                frame = frame or decompressor.decompressobj()
                if piece := frame.decompress(packed):
                    yield piece
                packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("the file ends before its end is marked")


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What reading a file raises where it cannot be read or is damaged."""
    zstandard = sys.modules.get("zstandard")
    return (OSError, EOFError, zlib.error, *([zstandard.ZstdError] if zstandard else []))


def file_bytes(path: Path, option: str) -> Iterator[bytes]:
    """The bytes of a file in pieces, unpacked if its name ends in .gz or .zst; ValueError if it cannot be read."""
    try:
        if path.suffix == ".zst":
            yield from zstd_unpacked(path)
        else:
            yield from unpacked(partial(gzip.open, path) if path.suffix == ".gz" else partial(path.open, "rb"))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{option} {path} needs the package zstandard: `pip install zstandard`, or unpack it: `zstd -d {path}`"
        ) from error
    except unpacking_errors() as error:
        raise ValueError(f"{option} {path} cannot be read ({error}); give a readable text file") from error


# Characters -----------------------------------------------------------------------------------------------------------


def characters(text: Text, digest: Any = None) -> Iterator[NDArray[Any]]:
    """A text's code points in pieces; ValueError says what is wrong with which document.

    Args:
        text: What to read.
        digest: A checksum of hashlib, which is updated with the bytes.
    """
    for document in text.documents:
        pieces = document.read() if digest is None else digested(document.read(), digest)
        if text.encoding == "latin-1":
            yield from (np.frombuffer(piece, dtype=np.uint8) for piece in pieces)
            continue
        try:
            for codes in code_points(pieces):
                if not codes.all():
                    raise ValueError(f"{text.option} {document.name} {HOLDS_NUL}")
                yield codes
        except UnicodeDecodeError as error:
            raise ValueError(f"{text.option} {document.name} {why_not_utf_8(document, error)}") from error


def digested(pieces: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    """The pieces as they are; a checksum is updated with them."""
    for piece in pieces:
        digest.update(piece)
        yield piece


def code_points(pieces: Iterable[bytes]) -> Iterator[NDArray[Any]]:
    """UTF-8 -> code points. UnicodeDecodeError counts bytes from the begin of the first piece."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    for piece in chain(pieces, (b"",)):
        rest = piece if read else piece.removeprefix(codecs.BOM_UTF8)
        read += len(piece)
        if rest and rest.isascii() and not decoder.getstate()[0]:
            yield np.frombuffer(rest, dtype=np.uint8)
            continue
        try:
            decoded = decoder.decode(rest, final=not piece)
        except UnicodeDecodeError as error:
            begin = read - len(error.object)  # which begins with what was left over of the piece before
            raise UnicodeDecodeError("utf-8", b"", begin + error.start, begin + error.end, error.reason) from None
        yield np.frombuffer(decoded.encode("utf-32-le"), dtype=np.uint32)


def why_not_utf_8(document: Document, error: UnicodeDecodeError) -> str:
    """What is wrong with a document, and the way out."""
    if not next(document.read(), b"").startswith(UTF_16_MARKS) and any(b"\0" in piece for piece in document.read()):
        return HOLDS_NUL
    known = [encoding for encoding in OTHER_ENCODINGS if can_be_read(document, encoding)] or ["latin1"]
    plain = document.name.removesuffix(".gz").removesuffix(".zst")
    unpack = "" if plain == document.name else "unpack it, and "
    return (
        f"is not UTF-8 (byte {error.start}: {error.reason}); it can be read as {', '.join(known)}; "
        f"if that is right, {unpack}`iconv -f {known[0]} -t utf-8 {plain} > NEW_FILE` converts it"
    )


def can_be_read(document: Document, encoding: str) -> bool:
    """Whether all bytes mean something in an encoding; UTF-16 needs a byte-order mark besides."""
    if encoding == "utf-16":
        return next(document.read(), b"").startswith(UTF_16_MARKS)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in chain(document.read(), (b"",)):
            decoder.decode(piece, final=not piece)
        return True
    except UnicodeDecodeError:
        return False
