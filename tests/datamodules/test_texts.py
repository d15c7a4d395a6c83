"""A text is what its files hold, in order, however it is cut into pieces; what is no text has its own message."""

import gzip
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import CharText, texts
from datamodules.texts import characters, code_points, find_files, text_of_bytes


def cut(raw, size):
    return [raw[first : first + size] for first in range(0, len(raw), size)]


@given(text=st.text(st.characters(exclude_categories=["Cs"])), size=st.integers(3, 9), marked=st.booleans())
def test_characters_do_not_depend_on_the_pieces(text, size, marked):
    raw = text.encode("utf-8-sig" if marked else "utf-8")
    codes = np.concatenate([*code_points(cut(raw, size)), np.zeros(0, np.uint8)])
    assert "".join(map(chr, codes)) == raw.decode("utf-8-sig")


def error_in(pieces):
    """Place and reason of the first byte that is not UTF-8, if there is one."""
    try:
        list(code_points(pieces))
    except UnicodeDecodeError as error:
        return error.start, error.reason
    return None


@given(raw=st.binary(max_size=40), size=st.integers(3, 9))
def test_an_error_is_counted_from_the_begin(raw, size):
    try:
        raw.decode()
        found = None
    except UnicodeDecodeError as error:
        found = error.start, error.reason
    assert error_in(cut(raw, size)) == found


def test_the_mark_counts_in_the_place_of_an_error():
    assert error_in([b"\xef\xbb\xbfa\xff"]) == (4, "invalid start byte")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"ab\0cd", "x holds NUL bytes, so it is no text"),
        (b"\xff" + b"a" * 50 + b"\0", "x holds NUL bytes, so it is no text"),
        (b"a" * 50 + b"\xe9", "x is not UTF-8 .byte 50: unexpected end of data.; it can be read as latin1; if that"),
        ("汉字".encode("gb18030") * 9, "x is .*it can be read as gb18030.*`iconv -f gb18030 -t utf-8 x > NEW_FILE`"),
        ("汉字".encode("utf-16") * 9, "x is .*it can be read as utf-16.*`iconv -f utf-16 "),
    ],
)
def test_what_is_no_text_is_said_whatever_the_pieces(monkeypatch, raw, message):
    monkeypatch.setattr(texts, "PIECE", 4)
    with pytest.raises(ValueError, match=f"^--corpus {message}"):
        list(characters(text_of_bytes(raw, "x", "--corpus")))


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder of text in several files, some of them hidden, one packed, one empty, one with a byte-order mark."""
    for name, text in {
        "b.txt": "bé", "a/z.txt": "\ufeffz", "a.txt": "a", "c": "", ".hidden": "x", ".git/config": "y", "a/.b/c": "w"
    }.items():  # fmt: skip
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text, encoding="utf-8")
    (tmp_path / "texts" / "d.gz").write_bytes(gzip.compress("dé".encode()))
    return tmp_path / "texts"


def read(corpus, **options):
    task = CharText(corpus=corpus, **options)
    return task.decode(task.corpus.ids)


def test_a_folder_is_its_files_in_the_order_of_their_paths(folder):
    assert [file.relative_to(folder).as_posix() for file in find_files([str(folder)])] == [
        "a.txt", "a/z.txt", "b.txt", "c", "d.gz",
    ]  # fmt: skip
    assert read(str(folder)) == "azbédé"


def test_several_files_and_folders_are_one_text_in_the_order_of_their_paths(folder):
    several = [str(folder / name) for name in ("d.gz", "b.txt", "a", "b.txt")]
    assert read(several) == "zbédé"
    task = CharText(corpus=several)
    assert task.corpus_name == f"[{','.join(several)}]"
    assert task.description["corpus"] == several


def test_a_packed_text_is_the_text(folder):
    (folder / "b.txt.gz").write_bytes(gzip.compress("bé".encode()))
    packed, plain = (CharText(corpus=str(folder / name)).corpus for name in ("b.txt.gz", "b.txt"))
    assert packed.sha256 == plain.sha256
    assert packed.vocabulary == plain.vocabulary
    assert packed.ids.tolist() == plain.ids.tolist()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("cut.gz", gzip.compress(b"once upon a time" * 99, mtime=0)[:-9], "cut.gz cannot be read .*end-of-stream"),
        ("plain.gz", b"once upon a time", "plain.gz cannot be read .*Not a gzipped file"),
        ("latin.gz", gzip.compress("é".encode("latin-1"), mtime=0), "unpack it, and `iconv -f .*latin > NEW_FILE`"),
        ("picture", b"\x89PNG\0\0", "picture holds NUL bytes"),
    ],
)
def test_of_a_folder_the_file_that_is_no_text_is_named(folder, name, raw, message):
    (folder / name).write_bytes(raw)
    with pytest.raises(ValueError, match=f"^--data.corpus {folder}/.*{message}"):
        read(str(folder))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], r"\[\] has no files; give text files, or a folder of such"),
        (["nowhere.txt"], "nowhere.txt is neither a file, a folder nor one of"),
        (["text8"], "text8 is neither a file, a folder"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path, monkeypatch, corpus, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^--data.corpus {message}"):
        read(corpus)


def test_a_folder_without_files_or_of_empty_ones_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"^--data.corpus {tmp_path} has no files"):
        read(str(tmp_path))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=f"^--data.corpus {tmp_path} is empty"):
        read(str(tmp_path))


# zst ------------------------------------------------------------------------------------------------------------------


def test_zst_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").touch()
    with pytest.raises(ValueError, match="a.zst needs the package zstandard: `pip install zstandard`, or unpack it"):
        read(str(tmp_path))


class Frame:
    """Stands in for zstandard's decompressobj: a frame is a letter's worth of text up to a bar."""

    def __init__(self):
        self.eof, self.unused_data = False, b""

    def decompress(self, packed):
        text, bar, self.unused_data = packed.partition(b"|")
        self.eof = bool(bar)
        if b"!" in text:
            raise ZeroDivisionError("no frame")
        return text


def test_zst_is_read_frame_by_frame_and_to_its_end(tmp_path, monkeypatch):
    decompressor = SimpleNamespace(decompressobj=Frame)
    stub = SimpleNamespace(ZstdDecompressor=lambda: decompressor, ZstdError=ZeroDivisionError)
    monkeypatch.setitem(sys.modules, "zstandard", stub)
    monkeypatch.setattr(texts, "ZSTD_PIECE", 4)
    file = tmp_path / "a.zst"
    file.write_bytes(b"once |upon a |||time|")
    assert read(str(file)) == "once upon a time"
    for wrong, message in ((b"once |upon a", "ends before its end"), (b"once |!|", "no frame")):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"a.zst cannot be read .*{message}"):
            read(str(file))


@pytest.mark.skipif(not shutil.which("zstd"), reason="packs with zstd")
def test_zst_as_zstd_writes_it(tmp_path):
    pytest.importorskip("zstandard")
    text = "".join(map(str, range(20_000)))
    raw = subprocess.run(["zstd", "-c"], input=text.encode(), capture_output=True, check=True).stdout
    (tmp_path / "a.zst").write_bytes(raw + raw)
    assert read(str(tmp_path)) == text + text
    for wrong in (raw[:-9], b"no frame at all"):
        (tmp_path / "a.zst").write_bytes(wrong)
        with pytest.raises(ValueError, match="a.zst cannot be read"):
            read(str(tmp_path))
