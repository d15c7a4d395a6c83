"""A large text is encoded once, for all processes and starts, and reads as in memory, whatever happens to the file."""

import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import CharText, encoding
from datamodules.encoding import MappedIds, encode
from datamodules.texts import text_of_bytes

ALPHABETS = {"bytes": "abc é\n", "words": "".join(map(chr, range(0x4E00, 0x4E00 + 300)))}


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
def test_an_encoding_is_each_characters_place_in_the_sorted_vocabulary(text):
    found = encode(text_of_bytes(text.encode(), "x", "--corpus"))
    vocabulary = sorted(set(text))
    assert found.found.vocabulary == "".join(vocabulary)
    assert found.ids.tolist() == [vocabulary.index(character) for character in text]
    assert found.ids.dtype == np.min_scalar_type(len(vocabulary) - 1)
    trained = text[: len(text) * 9 // 10]
    assert found.train_counts == [trained.count(character) for character in vocabulary]


# In a file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Every text is large, and lies in a folder of its own."""
    monkeypatch.setattr(encoding, "SMALL", 0)
    monkeypatch.setattr("datamodules.texts.PIECE", 100)
    (tmp_path / "text.txt").write_text(some_text(), encoding="utf-8")
    return tmp_path


def some_text(kind="bytes", seed=0, length=2000):
    return "".join(np.random.default_rng(seed).choice(list(ALPHABETS[kind]), length))


def task_in(folder, **options):
    return CharText(corpus=str(folder / "text.txt"), data_dir=str(folder / "data"), seq_len=8, **options)


def read(folder):
    task = task_in(folder)
    return task.decode(task.corpus.ids)


def encoded_files(folder):
    return sorted(path.name for path in (folder / "data" / ".encoded").iterdir())


@pytest.fixture
def writes(monkeypatch, tmp_path):
    """A function that tells how often a text was encoded into a file, in whichever process."""
    log = tmp_path / "log"

    def write(*args, original=encoding.write_encoding):
        with log.open("ab") as file:
            file.write(b".")
        original(*args)

    monkeypatch.setattr(encoding, "write_encoding", write)
    return lambda: log.stat().st_size if log.exists() else 0


@pytest.mark.parametrize("kind", ALPHABETS)
def test_batches_of_a_mapped_text_are_those_of_one_in_memory(kept, monkeypatch, kind):
    (kept / "text.txt").write_text(some_text(kind), encoding="utf-8")
    options = {"test_seq_lens": [8, 30], "test_history": 100}
    mapped = task_in(kept, **options)
    assert isinstance(mapped.corpus.ids, MappedIds)
    monkeypatch.setattr(encoding, "SMALL", 1 << 30)
    loaded = task_in(kept, **options)
    assert not isinstance(loaded.corpus.ids, MappedIds)
    assert mapped.vocabulary == loaded.vocabulary
    assert mapped.corpus.ids.dtype == loaded.corpus.ids.dtype
    assert (mapped.description, mapped.chance) == (loaded.description, loaded.chance)
    streams = [
        (task.train_stream(), *task.eval_streams("validate"), *task.eval_streams("test")) for task in (mapped, loaded)
    ]
    for ours, theirs in zip(*streams, strict=True):
        for number in range(len(theirs)):
            for one, other in zip(ours.read(0, 1, number), theirs.read(0, 1, number), strict=True):
                assert torch.equal(one, other)


def test_a_second_start_reads_nothing_of_the_text(kept, monkeypatch):
    assert read(kept) == some_text()
    monkeypatch.setattr(encoding, "characters", None)
    assert read(kept) == some_text()


def test_a_worker_is_sent_the_place_of_a_text_and_maps_it(kept):
    (kept / "text.txt").write_text(some_text("words", length=30_000), encoding="utf-8")
    task = task_in(kept)
    for stream in (task.train_stream(), *task.eval_streams("test")):
        sent = pickle.dumps(stream)
        assert len(sent) < 2000
        for one, other in zip(stream.read(0, 1, 3), pickle.loads(sent).read(0, 1, 3), strict=True):
            assert torch.equal(one, other)
    assert pickle.loads(pickle.dumps(task.parts["test"][5:] + 1)).tolist() == (task.parts["test"][5:] + 1).tolist()


def test_slices_of_a_mapped_text_are_mapped(kept):
    task, text = task_in(kept), some_text()
    part = task.corpus.ids[100:1000][50:-100]
    assert isinstance(part, MappedIds)
    assert task.decode(part) == text[150:900]
    assert task.decode(pickle.loads(pickle.dumps(part))) == text[150:900]
    assert task.decode(part[::7]) == text[150:900:7]
    assert task.decode(part[np.array([3, 1])]) == text[153] + text[151]
    assert task.decode([part[2]]) == text[152]
    assert len(task.corpus.ids[5:3]) == 0


SPOILT = {
    "cut": lambda raw: raw[:-1],
    "without its begin": lambda raw: raw[1:],
    "empty": lambda raw: b"",
    "foreign": lambda raw: bytes(range(256)),
    "of another format": lambda raw: raw.replace(b'"format": 1', b'"format": 0'),
    "about nothing": lambda raw: b"ab{}" + (2).to_bytes(8, "little") + encoding.MARK,
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_no_whole_encoding_is_made_anew(kept, writes, how):
    read(kept)
    [name] = encoded_files(kept)
    path = kept / "data" / ".encoded" / name
    path.write_bytes(SPOILT[how](path.read_bytes()))
    assert read(kept) == some_text()
    assert encoded_files(kept) == [name]
    assert writes() == 2


def test_a_changed_text_is_encoded_anew_and_the_old_encoding_is_gone(kept, writes):
    before = task_in(kept)
    assert len(before.corpus.ids) == 2000
    (kept / "text.txt").write_text(some_text(seed=1), encoding="utf-8")
    assert read(kept) == some_text(seed=1)
    assert writes() == 2
    assert len(encoded_files(kept)) == 1
    assert before.decode(before.corpus.ids) == some_text()  # who reads the old one has it


def test_a_text_of_another_time_is_read_and_not_encoded_anew(kept, writes):
    read(kept)
    old = encoded_files(kept)
    os.utime(kept / "text.txt", ns=(1, 1))
    assert read(kept) == some_text()
    assert writes() == 1
    assert len(encoded_files(kept)) == 1
    assert encoded_files(kept) != old


def test_texts_of_one_name_do_not_take_each_others_place(kept):
    (kept / "other").mkdir()
    (kept / "other" / "text.txt").write_text(some_text(seed=1), encoding="utf-8")
    other = CharText(corpus=str(kept / "other" / "text.txt"), data_dir=str(kept / "data"))
    assert other.decode(other.corpus.ids) == some_text(seed=1)
    assert read(kept) == some_text()
    assert len(encoded_files(kept)) == 2


def test_a_folder_that_grew_is_encoded_anew(kept, writes):
    def text():
        task = CharText(corpus=str(kept / "texts"), data_dir=str(kept / "data"))
        return task.decode(task.corpus.ids)

    (kept / "texts").mkdir()
    (kept / "texts" / "b.txt").write_text("bb")
    assert text() == "bb"
    (kept / "texts" / "a.txt").write_text("a")
    assert text() == "abb"
    assert text() == "abb"
    assert writes() == 2
    assert len(encoded_files(kept)) == 1


def test_a_text_that_is_written_to_meanwhile_is_refused(kept, monkeypatch):
    def survey(text, original=encoding.survey):
        found = original(text)
        os.utime(kept / "text.txt", ns=(1, 1))
        return found

    monkeypatch.setattr(encoding, "survey", survey)
    with pytest.raises(ValueError, match="--data.corpus .*text.txt was changed while it was read"):
        read(kept)
    assert encoded_files(kept) == []


def test_a_bad_text_leaves_nothing(kept):
    (kept / "text.txt").write_bytes(b"a" * 1000 + b"\xff")
    with pytest.raises(ValueError, match="text.txt is not UTF-8 .byte 1000"):
        read(kept)
    assert encoded_files(kept) == []


def test_where_nothing_can_be_kept_a_text_is_encoded_in_memory_and_this_is_said(kept):
    (kept / "data").touch()  # a file, as permissions do not stop every user
    with pytest.warns(UserWarning, match="text.txt cannot be kept in .*encoded .*: each process encodes it at each"):
        assert read(kept) == some_text()


def test_a_full_disk_costs_nothing_but_the_file(kept, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="cannot be kept in .*No space left"):
        assert read(kept) == some_text()
    assert encoded_files(kept) == []


# Processes ------------------------------------------------------------------------------------------------------------


def begin(work):
    """Do some work in a process of its own; returns its number."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_of_eight_processes_at_once_one_encodes(kept, writes):
    start = kept / "start"

    def work():
        while not start.exists():
            time.sleep(0.001)
        assert read(kept) == some_text()

    children = [begin(work) for _ in range(8)]
    start.touch()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert writes() == 1
    assert len(encoded_files(kept)) == 1


def test_who_is_killed_while_encoding_stops_nobody_and_leaves_nothing(kept, monkeypatch):
    marker = kept / "marker"

    def write_half(text, found, file):
        file.write(b"half")
        file.flush()
        marker.touch()
        time.sleep(60)

    with monkeypatch.context() as half:
        half.setattr(encoding, "write_places", write_half)
        child = begin(lambda: read(kept))
    while not marker.exists():
        time.sleep(0.001)
    waiting = begin(lambda: Path(kept / "waited").write_text(read(kept)))
    assert any(name.endswith(".tmp") for name in encoded_files(kept))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert read(kept) == some_text()
    assert os.waitpid(waiting, 0)[1] == 0
    assert (kept / "waited").read_text() == some_text()
    assert len(encoded_files(kept)) == 1
