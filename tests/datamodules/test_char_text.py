"""Character text: windows cover their split once, corpora are verified, every bad text has its own message."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import CharText, corpora
from datamodules.base import IGNORED
from datamodules.char_text import eval_batch, split_text, training_batch, windows


@pytest.fixture
def text_file(tmp_path):
    """Write a text and return its path as an option."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "some.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return str(path)

    return write


# Windows --------------------------------------------------------------------------------------------------------------


@given(length=st.integers(2, 60), seq_len=st.integers(1, 20), batch_size=st.integers(1, 4))
def test_evaluation_predicts_every_character_but_the_first_once(length, seq_len, batch_size):
    ids = np.arange(length, dtype=np.uint8)
    num_windows = -(-(length - 1) // seq_len)
    inputs, targets = eval_batch(ids, seq_len, 0, np.arange(num_windows))
    scored = targets != IGNORED
    assert targets[scored].tolist() == list(range(1, length))
    assert torch.equal(inputs[scored], targets[scored] - 1)
    assert (inputs[~scored] == 0).all()
    assert inputs.dtype == targets.dtype == torch.int64


def test_training_windows_are_pieces_of_the_text_and_reach_both_ends():
    ids = np.arange(50, dtype=np.uint8)
    inputs, targets = training_batch(ids, 0, 10, 0, np.arange(3000))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs + 1, targets)
    assert set(inputs[:, 0].tolist()) == set(range(40))
    alone = [training_batch(ids, 0, 10, number, np.array([7]))[0] for number in (0, 1)]
    assert torch.equal(alone[0][0], inputs[7])
    assert torch.equal(alone[1][0], inputs[7])
    assert not torch.equal(inputs, training_batch(ids, 1, 10, 0, np.arange(3000))[0])


def test_a_window_of_everything_fits():
    inputs, targets = windows(np.arange(5, dtype=np.int32), np.array([0]), 4)
    assert inputs.tolist() == [[0, 1, 2, 3]]
    assert targets.tolist() == [[1, 2, 3, 4]]


@given(length=st.integers(0, 1000))
def test_splits_cut_by_position(length):
    ids = np.arange(length)
    parts = split_text(ids, "90/5/5")
    assert np.concatenate([parts["train"], parts["validate"], parts["test"]]).tolist() == ids.tolist()
    assert len(parts["train"]) == int(0.9 * length)
    parts = split_text(ids, "90/10")
    assert np.concatenate([parts["train"], parts["validate"]]).tolist() == ids.tolist()
    assert parts["validate"].tolist() == parts["test"].tolist()


# The task -------------------------------------------------------------------------------------------------------------


def test_the_task_reads_a_file(tiny_text):
    text = tiny_text.read_text(encoding="utf-8")
    task = CharText(corpus=str(tiny_text), seq_len=20, batch_size=4, test_seq_lens=[50, 20])
    assert task.vocabulary == "".join(sorted(set(text)))
    assert task.vocab_size == len(task.vocabulary)
    assert task.corpus.ids.dtype == np.uint8
    assert task.decode(task.corpus.ids) == text
    assert task.decode(task.encode("maté\n")) == "maté\n"
    assert task.slice_names("validate") == ["T=20"]
    assert task.slice_names("test") == ["T=20", "T=50"]
    assert len(task.train_dataloader()) == -(-(len(text) * 9 // 10) // 80)
    assert task.metrics == ("bits_per_char", "accuracy")
    for loader, seq_len, rows in zip(task.test_dataloader(), (20, 50), (4, 1), strict=True):
        batches = list(loader)
        assert batches[0][0].shape == (rows, seq_len)
        targets = torch.cat([targets.flatten() for _, targets in batches])
        assert task.decode(targets[targets != IGNORED].tolist()) == text[len(text) * 95 // 100 + 1 :]
    assert pickle.loads(pickle.dumps(task.train_stream())).read(0, 1, 0)[0].shape == (4, 20)


def test_the_history_is_read_and_not_scored(text_file):
    text = "".join(chr(ord("a") + i * i % 23) for i in range(400))
    task = CharText(corpus=text_file(text), seq_len=8, test_history=100)
    assert task.slice_names("test") == ["T=8", "history=100"]
    [(inputs, targets)] = list(task.test_dataloader()[1])
    assert task.decode(inputs[0].tolist()) == text[280:399]
    assert (targets[0, :99] == IGNORED).all()
    assert task.decode(targets[0, 99:].tolist()) == text[380:]


def test_a_test_of_fewer_characters_scores_the_same_at_all_lengths(text_file):
    text = "".join(chr(ord("a") + i * i % 23) for i in range(4000))
    task = CharText(corpus=text_file(text), seq_len=8, test_seq_lens=[32, 20], test_chars=64, test_history=100)
    firsts = (3801, 3801, 3801, 3800)  # what comes before the first character is known in the history alone
    for loader, first in zip(task.test_dataloader(), firsts, strict=True):
        targets = torch.cat([targets.flatten() for _, targets in loader])
        assert task.decode(targets[targets != IGNORED].tolist()) == text[first:3865]
    assert sum((targets != IGNORED).sum() for _, targets in task.val_dataloader()[0]) == 199
    with pytest.raises(ValueError, match="--data.test_chars is 31; it must be at least 32"):
        CharText(seq_len=8, test_seq_lens=[32], test_chars=31)


def test_two_processes_read_the_batch_of_one(tiny_text):
    stream = CharText(corpus=str(tiny_text), seq_len=20, batch_size=6).train_stream()
    parts = [stream.read(rank, 2, 5)[0] for rank in range(2)]
    assert torch.equal(torch.cat(parts), stream.read(0, 1, 5)[0])


def test_many_characters_need_wider_numbers(text_file):
    text = "".join(map(chr, range(1000, 1400))) + "\U0001f33f"
    task = CharText(corpus=text_file(text), seq_len=4)
    assert task.corpus.ids.dtype == np.uint16
    assert task.decode(task.corpus.ids) == text


def test_a_byte_order_mark_is_no_character(text_file):
    assert CharText(corpus=text_file("abcé", "utf-8-sig")).vocabulary == "abcé"


def test_unknown_characters_are_named(text_file):
    task = CharText(corpus=text_file("hello there"))
    with pytest.raises(
        ValueError, match=r"\['H', '!'\]|\['!', 'H'\] not in the vocabulary of .*some.txt; it has ' ehlort'"
    ):
        task.encode("Hello!")


def test_a_checkpoint_keeps_the_vocabulary(text_file):
    task = CharText(corpus=text_file("abab" * 10))
    state = task.state_dict()
    assert state == {"vocabulary": "ab", "corpus_sha256": hashlib.sha256(b"abab" * 10).hexdigest()}
    task.load_state_dict(state)
    with pytest.warns(UserWarning, match="not the text that the checkpoint was trained on"):
        CharText(corpus=text_file("abba" * 10)).load_state_dict(state)
    with pytest.raises(ValueError, match="--data.corpus .* has 3 characters, the checkpoint's text had 2; .*'c'"):
        CharText(corpus=text_file("abc")).load_state_dict(state)


def test_a_record_can_tell_which_text_it_was(text_file):
    task = CharText(corpus=text_file("abab" * 10))
    assert task.description["characters"] == 40
    assert task.description["sha256"] == task.corpus.sha256
    assert task.description["corpus"].endswith("some.txt")


def test_a_task_is_built_before_its_text_is_read():
    CharText(corpus="nowhere.txt")


# Bad texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty; give a file with text"),
        (b"ab\0cd", "holds NUL bytes, so it is no text"),
        (b"ab\xff\xfe", "is not UTF-8 .byte 2: .*iconv"),
    ],
)
def test_a_bad_file_is_refused(text_file, text, message):
    path = text_file(text)
    with pytest.raises(ValueError, match=f"--data.corpus {path} {message}"):
        CharText(corpus=path).vocabulary  # noqa: B018 - read for its error


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("tinyshakespear", "neither a file, a folder nor one of python-stdlib, .*; did you mean tiny-shakespeare"),
        ("enwiki8", "did you mean enwik8"),
        ("no/such/file.txt", "neither a file, a folder nor one of .*enwik8$"),
    ],
)
def test_a_wrong_name_is_refused(corpus, message):
    with pytest.raises(ValueError, match=message):
        CharText(corpus=corpus).vocabulary  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "--data.seq_len is 0"),
        ({"test_seq_lens": [8, 0]}, "--data.test_seq_lens is 0"),
        ({"seq_len": 8, "test_history": -1}, "--data.test_history is -1"),
        ({"seq_len": 8, "test_history": 951}, "--data.test_history 951 does not fit: only 950 characters"),
        ({"seq_len": 50}, "--data.seq_len 50 does not fit: the validate part of .* has 50 characters; use at most 49"),
        ({"seq_len": 1000}, "--data.seq_len 1000 does not fit: the train part"),
        ({"seq_len": 8, "test_seq_lens": [64]}, "--data.test_seq_lens 64 does not fit: the test part"),
    ],
)
def test_windows_that_do_not_fit_are_refused(text_file, options, message):
    with pytest.raises(ValueError, match=message):
        CharText(corpus=text_file("0123456789" * 100), **options).train_dataloader()


def test_messages_name_the_option_that_gave_the_text(tmp_path):
    text = tmp_path / "latin.txt"
    text.write_bytes("é".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    for name in ("nowhere.txt", str(text), str(tmp_path / "empty")):
        with pytest.raises(ValueError, match=f"^--corpora {name} "):
            corpora.load_corpus(name, "data", "--corpora")


@pytest.mark.parametrize("option", ["seq_len", "test_history"])
def test_a_text_is_checked_before_anything_is_drawn_from_it(tmp_path, option):
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 20)
    CharText(corpus=str(text), seq_len=4).check()
    with pytest.raises(ValueError, match=f"^--data.{option} 200 does not fit"):
        CharText(corpus=str(text), **{"seq_len": 4} | {option: 200}).check()


# Named corpora --------------------------------------------------------------------------------------------------------


def test_the_standard_library_is_read_in_order_and_without_its_tests(tmp_path):
    for path in ("b.py", "a/z.py", "a.py", "test/t.py", "x/tests/t.py", "site-packages/p.py", "config-3/c.py", "n.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"# {path}\n")
    (tmp_path / "latin.py").write_text("# é\n", encoding="utf-8")
    assert corpora.stdlib_source(tmp_path) == b"# a.py\n# a/z.py\n# b.py\n"
    with pytest.raises(ValueError, match="--data.corpus python-stdlib: .* has no source files"):
        corpora.stdlib_source(tmp_path / "nothing")


def test_the_default_corpus_is_this_pythons_library():
    task = CharText()
    assert len(task.corpus.ids) > 3_000_000
    assert set("def (self):\n") < set(task.vocabulary)
    assert task.vocabulary.isascii()
