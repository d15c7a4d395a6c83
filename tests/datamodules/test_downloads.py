"""Published files are fetched once, go on after a cut connection, and are verified; nothing wrong is kept."""

import dataclasses
import hashlib
import io
import os
import random
import urllib.request
import zipfile

import numpy as np
import pytest
from rich.console import Console

from datamodules import CharText, corpora, downloads
from tests.datamodules.served import Served

TEXT = "".join(random.Random(0).choices("abcdefghij \n", k=300_000)).encode()


@pytest.fixture
def served(monkeypatch):
    """A server that sends TEXT as text8, and no pauses between connections."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSE", 0)
    server = Served(TEXT)
    publish(monkeypatch, server)
    yield server
    server.close()


def publish(monkeypatch, server, text=TEXT, member=None, encoding="utf-8"):
    """Let text8 be a text that the server sends, in a zip if it is a member of one; returns what is published."""
    checksum = hashlib.sha1(text).hexdigest()
    file = downloads.Download("small.txt", server.url, len(text), "sha1", checksum, member, encoding)
    monkeypatch.setitem(corpora.DOWNLOADS, "text8", file)
    server.content = text if member is None else zipped(text, member)
    return file


def zipped(text, member):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


def read(folder):
    """The text, as a task finds it."""
    corpus = CharText(corpus="text8", data_dir=str(folder)).corpus
    return np.frombuffer(corpus.vocabulary.encode(), np.uint8)[corpus.ids].tobytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("member", [None, "inside"])
def test_a_corpus_is_downloaded_once_and_verified(monkeypatch, served, tmp_path, member):
    publish(monkeypatch, served, member=member)
    for _ in range(2):
        assert read(tmp_path / "data") == TEXT
    assert served.asked == [None]
    assert names(tmp_path / "data") == ["small.txt"]
    (tmp_path / "data" / "small.txt").write_bytes(TEXT[::-1])
    with pytest.raises(ValueError, match="small.txt is not the published file .300,000 bytes, sha1 .*; delete it"):
        read(tmp_path / "data")


@pytest.mark.parametrize("member", [None, "inside"])
def test_a_download_goes_on_where_the_connection_was_cut(monkeypatch, served, tmp_path, member):
    publish(monkeypatch, served, member=member)
    served.cuts = [100_000, 0, 50_000]
    assert read(tmp_path) == TEXT
    assert served.asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path) == ["small.txt"]


def test_a_server_that_sends_the_whole_again_is_understood(served, tmp_path):
    served.knows_ranges, served.cuts = False, [100_000]
    assert read(tmp_path) == TEXT
    assert served.asked == [None, "bytes=100000-"]


def test_a_later_start_goes_on_where_the_tries_ended(served, tmp_path):
    served.cuts = [100_000, *[0] * downloads.TRIES]
    with pytest.raises(ValueError, match="ended after 100,000 of 300,000 bytes; what has come is kept, and the next"):
        read(tmp_path)
    assert len(served.asked) == 1 + downloads.TRIES
    assert names(tmp_path) == [".small.txt.part"]
    assert read(tmp_path) == TEXT
    assert served.asked[-1] == "bytes=100000-"
    assert names(tmp_path) == ["small.txt"]


def test_what_had_come_whole_before_a_kill_is_not_fetched_again(served, tmp_path):
    (tmp_path / ".small.txt.part").write_bytes(TEXT)
    assert read(tmp_path) == TEXT
    assert served.asked == ["bytes=300000-"]


@pytest.mark.parametrize(
    ("sent", "member"),
    [(TEXT[::-1], None), (b"<html>please log in</html>", None), (b"not a zip", "inside"), (TEXT, "inside")],
)
def test_wrong_bytes_are_refused_and_deleted(monkeypatch, served, tmp_path, sent, member):
    file = publish(monkeypatch, served, member=member)
    right, served.content = served.content, sent
    with pytest.raises(ValueError, match="cannot be downloaded .*sent something else, which was deleted") as raised:
        read(tmp_path)
    for part in (file.url, str(tmp_path / "small.txt"), file.checksum, "300,000 bytes", "--data.data_dir"):
        assert part in str(raised.value)
    assert not list(tmp_path.iterdir())
    served.content = right
    assert read(tmp_path) == TEXT


def test_a_zip_of_another_file_or_of_other_content_is_refused(monkeypatch, served, tmp_path):
    publish(monkeypatch, served, member="inside")
    for other in (zipped(TEXT, "another"), zipped(TEXT[::-1], "inside")):
        served.content = other
        with pytest.raises(ValueError, match="sent something else"):
            read(tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_asked_for_once(served, tmp_path):
    served.status = 404
    with pytest.raises(ValueError, match="small.txt is missing and cannot be downloaded .*404.*; on a machine with"):
        read(tmp_path)
    assert served.asked == [None]
    assert not list(tmp_path.iterdir())


def test_without_a_network_nothing_is_tried_twice_or_left(monkeypatch, served, tmp_path):
    served.close()
    with pytest.raises(ValueError, match="cannot be downloaded .*refused"):
        read(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_download_at_once(monkeypatch, served, tmp_path):
    def receive(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "receive", receive)
    with pytest.raises(ValueError, match="cannot be downloaded .*No space left"):
        read(tmp_path)
    assert len(served.asked) == 1


def test_of_several_processes_one_downloads(served, tmp_path):
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = int(read(tmp_path) != TEXT)
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert served.asked == [None]


def test_progress_is_a_line_and_in_a_terminal_a_bar(monkeypatch, served, tmp_path):
    said = {}
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        monkeypatch.setattr(downloads, "get_console", lambda console=console: console)
        read(tmp_path / str(terminal))
        said[terminal] = console.file.getvalue()
    assert said[False] == f"downloading {served.url} to {tmp_path / 'False' / 'small.txt'}\n"
    assert "300.0/300.0 kB" in said[True]


def test_enwik8_is_read_as_bytes(monkeypatch, served, tmp_path):
    file = publish(monkeypatch, served, "né\n".encode(), "enwik8", "latin-1")
    monkeypatch.setitem(corpora.DOWNLOADS, "enwik8", dataclasses.replace(file))
    assert CharText(corpus="enwik8", data_dir=str(tmp_path)).vocab_size == 4


def test_published_checksums_are_whole():
    for file in corpora.DOWNLOADS.values():
        assert len(file.checksum) == 2 * hashlib.new(file.algorithm).digest_size


def test_the_way_by_hand_names_the_option_of_the_folder(tmp_path):
    assert downloads.by_hand(corpora.DOWNLOADS["text8"], tmp_path, "--data_dir").endswith("its folder by --data_dir")
    assert urllib.request.Request(corpora.DOWNLOADS["text8"].url).type == "https"
