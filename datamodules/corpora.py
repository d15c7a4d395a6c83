"""Texts to train on: named corpora, looked up, downloaded and verified, or any text file; and how one becomes numbers.

A corpus is its characters' places in its sorted vocabulary, in the smallest integer type that holds them.
Everything here is UTF-8 but enwik8, read as Latin-1: published bits per character of enwik8 are bits per byte.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import io
import os
import sysconfig
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PYTHON_STDLIB = "python-stdlib"
# Tests, other people's packages, applications, bundled wheels.
STDLIB_SKIPPED = {
    "__pycache__", "dist-packages", "ensurepip", "idle_test", "idlelib", "lib2to3", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
BUILD_FILES = ("_sysconfigdata", "config-")  # written when Python was built, with that machine's paths
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
OTHER_ENCODINGS = ("utf-16", "gb18030", "shift_jis", "euc-kr", "big5")  # and latin1, which can always be read
CHUNK = 1 << 22  # characters counted at a time


@dataclass(frozen=True)
class Download:
    """A published file: its name in the data folder, address, size, checksum, and its name in a zip if it is in one."""

    filename: str
    url: str
    num_bytes: int
    algorithm: str
    checksum: str
    member: str | None = None
    encoding: str = "utf-8"


DOWNLOADS = {
    "tiny-shakespeare": Download(
        filename="tiny-shakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        num_bytes=1_115_394,
        algorithm="sha256",
        checksum="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "text8": Download(
        filename="text8",
        url="https://mattmahoney.net/dc/text8.zip",
        num_bytes=100_000_000,
        algorithm="sha1",
        checksum="0dc3edebc970dcc96137e7deda4d9995af9d93de",
        member="text8",
    ),
    "enwik8": Download(
        filename="enwik8",
        url="https://mattmahoney.net/dc/enwik8.zip",
        num_bytes=100_000_000,
        algorithm="sha1",
        checksum="57b8363b814821dc9d47aa4d41f58733519076b2",
        member="enwik8",
        encoding="latin-1",
    ),
}
CORPORA = (PYTHON_STDLIB, *DOWNLOADS)


@dataclass(frozen=True)
class Corpus:
    """A text as numbers.

    Attributes:
        name: As the user gave it.
        vocabulary: Its characters, sorted.
        ids: Each character's place in the vocabulary.
        sha256: Checksum of the bytes.
    """

    name: str
    vocabulary: str
    ids: NDArray[Any]
    sha256: str


def load_corpus(name: str, data_dir: str, option: str = "--data.corpus", dir_option: str = "--data.data_dir") -> Corpus:
    """Read a named corpus or a text file; ValueError says what is wrong with it and what to do.

    Args:
        name: One of `CORPORA`, or the path of a text file.
        data_dir: Folder of downloaded corpora.
        option: What the name was given by, for messages.
        dir_option: What the folder was given by.
    """
    encoding = DOWNLOADS[name].encoding if name in DOWNLOADS else "utf-8"
    if name == PYTHON_STDLIB:
        raw = stdlib_source(Path(sysconfig.get_path("stdlib")), option)
    elif name in DOWNLOADS:
        raw = read_download(DOWNLOADS[name], Path(data_dir), dir_option)
    else:
        raw = read_file(name, option)
    vocabulary, ids = index_characters(character_codes(raw, encoding, name, option))
    return Corpus(name, vocabulary, ids, hashlib.sha256(raw).hexdigest())


def stdlib_source(root: Path, option: str = "--data.corpus") -> bytes:
    """The pure-ASCII modules of a standard library, one after the other in the order of their paths."""
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = sorted(
        path.as_posix()
        for path in paths
        if STDLIB_SKIPPED.isdisjoint(path.parts) and not path.parts[0].startswith(BUILD_FILES)
    )
    sources = ((root / path).read_bytes() for path in kept)
    raw = b"".join(source for source in sources if source.isascii())
    if not raw:
        raise ValueError(f"{option} {PYTHON_STDLIB}: {root} has no source files; use another corpus or a text file")
    return raw


def read_file(name: str, option: str) -> bytes:
    """The bytes of the user's text file."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise ValueError(f"{option} {name} is a folder; give one text file")
    if not path.is_file():
        near = difflib.get_close_matches(name.lower(), CORPORA, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{option} {name} is neither a file nor one of {', '.join(CORPORA)}{hint}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{option} {name} cannot be read ({error}); give a readable text file") from error
    if not raw:
        raise ValueError(f"{option} {name} is empty; give a file with text")
    if b"\0" in raw and not raw.startswith(UTF_16_MARKS):
        raise ValueError(f"{option} {name} holds NUL bytes, so it is no text; give a UTF-8 text file")
    return raw


# Downloads ------------------------------------------------------------------------------------------------------------


def read_download(file: Download, data_dir: Path, dir_option: str) -> bytes:
    """The verified bytes of a published file, from the folder or, the first time, from its address."""
    path = data_dir / file.filename
    if path.is_file():
        raw = path.read_bytes()
        if not is_genuine(raw, file):
            raise ValueError(f"{path} is not the published file ({expected(file)}); delete it to fetch it again")
        return raw
    try:
        raw = fetch(file)
        if is_genuine(raw, file):
            save(raw, path)
            return raw
        reason = f"{file.url} sent something else"
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
        reason = str(error)
    raise ValueError(f"{path} is missing and cannot be downloaded ({reason}); {by_hand(file, data_dir, dir_option)}")


def fetch(file: Download) -> bytes:
    """Download a file, out of its zip if it is in one."""
    with urllib.request.urlopen(file.url, timeout=DOWNLOAD_TIMEOUT) as response:
        raw: bytes = response.read()
    return zipfile.ZipFile(io.BytesIO(raw)).read(file.member) if file.member else raw


def is_genuine(raw: bytes, file: Download) -> bool:
    """Whether size and checksum are the published ones."""
    return len(raw) == file.num_bytes and hashlib.new(file.algorithm, raw).hexdigest() == file.checksum


def expected(file: Download) -> str:
    """The published size and checksum, for a message."""
    return f"{file.num_bytes:,} bytes, {file.algorithm} {file.checksum}"


def by_hand(file: Download, data_dir: Path, dir_option: str) -> str:
    """How to get the file without us, for a message."""
    unpack = f", unzip {file.member}" if file.member else ""
    return (
        f"on a machine with a network get {file.url}{unpack}, and put it here as {data_dir / file.filename} "
        f"({expected(file)}), or name its folder by {dir_option}"
    )


def save(raw: bytes, path: Path) -> None:
    """Write a file that other processes see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Characters -----------------------------------------------------------------------------------------------------------


def character_codes(raw: bytes, encoding: str, name: str, option: str) -> NDArray[Any]:
    """Bytes -> code points, without a byte-order mark."""
    if encoding == "latin-1" or raw.isascii():
        return np.frombuffer(raw, dtype=np.uint8)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        known = [encoding for encoding in OTHER_ENCODINGS if can_be_read(raw, encoding)] or ["latin1"]
        raise ValueError(
            f"{option} {name} is not UTF-8 (byte {error.start}: {error.reason}); it can be read as "
            f"{', '.join(known)}; if that is right, `iconv -f {known[0]} -t utf-8 {name} > NEW_FILE` converts it"
        ) from error
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def can_be_read(raw: bytes, encoding: str) -> bool:
    """Whether all bytes mean something in an encoding; UTF-16 needs a byte-order mark besides."""
    if encoding == "utf-16":
        return raw.startswith(UTF_16_MARKS)
    try:
        raw.decode(encoding)
        return True
    except UnicodeDecodeError:
        return False


def index_characters(codes: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Code points -> the sorted vocabulary and each character's place in it."""
    counts = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    for start in range(0, len(codes), CHUNK):  # bincount makes eight bytes of each
        counts += np.bincount(codes[start : start + CHUNK], minlength=len(counts))
    present = np.flatnonzero(counts)
    places = np.zeros(len(counts), dtype=np.min_scalar_type(len(present) - 1))
    places[present] = np.arange(len(present))
    return "".join(map(chr, present)), places[codes]
