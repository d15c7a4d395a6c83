"""Published files: looked up in a folder and verified, or fetched into it, going on where a connection was cut.

What has come lies in a file beside the final one until all of it is there and its checksum is right; a later start goes
on from it, too.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from datamodules.locks import alone

TIMEOUT = 10.0  # seconds without an answer
TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second of them; it doubles
BLOCK = 1 << 16  # bytes received at a time
COLUMNS = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

# Of connections, unlike a full disk.
CUT = (ConnectionError, TimeoutError, ssl.SSLError, urllib.error.URLError, http.client.HTTPException)

Advance = Callable[[int, int | None], None]  # bytes that are there, bytes in all if that is known


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


class DownloadError(Exception):
    """What a server sent is not the published file."""


def find(file: Download, data_dir: Path, dir_option: str) -> Path:
    """The file in the folder, fetched if it is not there; ValueError says why it cannot be, and how to get it."""
    path = data_dir / file.filename
    if path.is_file():
        return path
    try:
        with alone(path):
            if not path.is_file():  # another process may have fetched it while we waited
                fetch(file, path)
        return path
    except (OSError, http.client.HTTPException, DownloadError) as error:
        raise ValueError(
            f"{path} is missing and cannot be downloaded ({error}); {by_hand(file, data_dir, dir_option)}"
        ) from error


def check(file: Download, path: Path) -> None:
    """Raise ValueError unless size and checksum of the file at `path` are the published ones."""
    if not is_genuine(path, file):
        raise ValueError(f"{path} is not the published file ({expected(file)}); delete it to fetch it again")


def is_genuine(path: Path, file: Download) -> bool:
    """Whether size and checksum are the published ones."""
    if path.stat().st_size != file.num_bytes:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, file.algorithm).hexdigest() == file.checksum


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


# Fetching -------------------------------------------------------------------------------------------------------------


def fetch(file: Download, path: Path) -> None:
    """Download a file, out of its zip if it is in one. Raises OSError, HTTPException, DownloadError.

    DownloadError is of other content than the published, of which nothing is kept.
    """
    part, whole = (path.with_name(f".{path.name}.{kind}") for kind in ("part", "whole"))
    with shown_progress(f"downloading {file.url} to {path}") as advance:
        receive_all(file.url, part, advance)
    try:
        if not (is_unpacked(part, whole, file.member) and is_genuine(whole, file)):
            part.unlink(missing_ok=True)
            raise DownloadError(f"{file.url} sent something else, which was deleted")
        whole.replace(path)
        part.unlink(missing_ok=True)
    finally:
        whole.unlink(missing_ok=True)


def is_unpacked(part: Path, whole: Path, member: str | None) -> bool:
    """Make `whole` of what has come, a zip if it is to have a member; returns whether that is possible."""
    if member is None:
        part.replace(whole)
        return True
    try:
        with zipfile.ZipFile(part) as archive:
            inside = archive.getinfo(member)
            inside.filename = whole.name
            archive.extract(inside, whole.parent)
        return True
    except (zipfile.BadZipFile, zlib.error, KeyError):
        return False


@contextmanager
def shown_progress(text: str) -> Iterator[Advance]:
    """Say a line, and in a terminal show a bar: how far it is, how fast, and the time left."""
    console = get_console()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    with Progress(*COLUMNS, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda there, total: bar.update(task, completed=there, total=total)


def receive_all(url: str, part: Path, advance: Advance) -> None:
    """Receive what `part` lacks of a file, over as many connections as it takes. Raises OSError and HTTPException.

    A file that cannot be asked for at all is not asked for again; where a connection was cut, another goes on, until
    `TRIES` in a row brought nothing new.
    """
    failures, has_begun = 0, False
    while True:
        before = size_of(part)
        try:
            with asked(url, before) as response:
                has_begun = True
                if response is not None:
                    receive(response, part, before, advance)
            return
        except CUT as error:
            failures = 0 if size_of(part) > before else failures + 1
            if isinstance(error, urllib.error.HTTPError) or not has_begun:
                raise
            if failures == TRIES:
                raise OSError(f"{error}; what has come is kept, and the next start goes on from there") from error
            time.sleep(PAUSE * 2 ** (failures - 1) if failures else 0)


@contextmanager
def asked(url: str, first: int) -> Iterator[http.client.HTTPResponse | None]:
    """The answer to asking for a file from byte `first` on; None if the server says that there is no more of it."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={first}-"} if first else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if not (first and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        yield None
    else:
        with response:
            yield response


def receive(response: http.client.HTTPResponse, part: Path, first: int, advance: Advance) -> None:
    """Add what a server sends from byte `first` on; begin anew if it sends all. ConnectionError if not all has come."""
    goes_on = first and (response.getheader("Content-Range") or "").startswith(f"bytes {first}-")
    there = first if goes_on else 0
    total = None if response.length is None else there + response.length
    with part.open("ab") as file:
        file.truncate(there)
        while block := response.read(BLOCK):
            file.write(block)
            there += len(block)
            advance(there, total)
    if total is not None and there != total:
        raise ConnectionError(f"the connection ended after {there:,} of {total:,} bytes")


def size_of(path: Path) -> int:
    """Bytes in a file; 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0
