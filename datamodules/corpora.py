"""Texts to train on, as numbers: named corpora, looked up or downloaded, or any files and folders of text.

Everything here is UTF-8 but enwik8, read as Latin-1: published bits per character of enwik8 are bits per byte.
"""

from __future__ import annotations

import difflib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from datamodules import downloads
from datamodules.downloads import Download
from datamodules.encoding import Encoding, encode, encoded
from datamodules.texts import find_files, text_of_bytes, text_of_files

PYTHON_STDLIB = "python-stdlib"
# Tests, other people's packages, applications, bundled wheels.
STDLIB_SKIPPED = {
    "__pycache__", "dist-packages", "ensurepip", "idle_test", "idlelib", "lib2to3", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
BUILD_FILES = ("_sysconfigdata", "config-")  # written when Python was built, with that machine's paths
ENCODED = ".encoded"  # folder, in that of the data, of encoded texts

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
        train_counts: How often each character of the vocabulary occurs in the training part.
    """

    name: str
    vocabulary: str
    ids: NDArray[Any]
    sha256: str
    train_counts: Sequence[int]


def load_corpus(
    name: str | Sequence[str], data_dir: str, option: str = "--data.corpus", dir_option: str = "--data.data_dir"
) -> Corpus:
    """Read a named corpus or text files; ValueError says what is wrong with it and what to do.

    Args:
        name: One of `CORPORA`, or the path of a text file or a folder of such, or several paths.
        data_dir: Folder of downloaded corpora and encoded texts.
        option: What the name was given by, for messages.
        dir_option: What the folder was given by.
    """
    folder = Path(data_dir)
    if name == PYTHON_STDLIB:
        raw = stdlib_source(Path(sysconfig.get_path("stdlib")), option)
        encoding = encode(text_of_bytes(raw, PYTHON_STDLIB, option))
    elif isinstance(name, str) and name in DOWNLOADS:
        encoding = read_download(DOWNLOADS[name], name, folder, option, dir_option)
    else:
        encoding = read_files(name, folder, option)
    found = encoding.found
    return Corpus(shown_name(name), found.vocabulary, encoding.ids, found.sha256, encoding.train_counts)


def shown_name(name: str | Sequence[str]) -> str:
    """What the text was given as: a name as it is, several in brackets."""
    return name if isinstance(name, str) else f"[{','.join(name)}]"


def read_download(file: Download, name: str, folder: Path, option: str, dir_option: str) -> Encoding:
    """A published text, verified and, the first time, fetched."""
    path = downloads.find(file, folder, dir_option)
    check = partial(downloads.check, file, path)
    text = text_of_files([path], name, option, encoding=file.encoding, check=check)
    return encoded(text, [str(path)], folder / ENCODED)


def read_files(name: str | Sequence[str], folder: Path, option: str) -> Encoding:
    """The user's text."""
    names, shown = [name] if isinstance(name, str) else name, shown_name(name)
    try:
        files = find_files(names)
    except FileNotFoundError as error:
        missing = str(error)
        near = difflib.get_close_matches(missing.lower(), CORPORA, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{option} {missing} is neither a file, a folder nor one of {', '.join(CORPORA)}{hint}"
        ) from error
    if not files:
        raise ValueError(f"{option} {shown} has no files; give text files, or a folder of such")
    return encoded(text_of_files(files, shown, option), names, folder / ENCODED)


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
