"""Event files that are cut off: what is kept stays byte for byte, and a file is replaced whole or not at all."""

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from callbacks import event_files
from callbacks.dashboard import unit_of
from callbacks.event_files import cut_off, kept_of


def written(folder, points, texts=()):
    """A new event file with points (tag, place), and its path."""
    before = set(folder.glob("events*"))
    with SummaryWriter(folder) as writer:
        for tag, place in points:
            writer.add_scalar(tag, 1 / 3, place)
        for tag in texts:
            writer.add_text(tag, "as it is", 0)
    (file,) = set(folder.glob("events*")) - before
    return file


def records(file):
    return list(RawEventFileLoader(str(file)).Load())


def reached(**places):
    return lambda tag, place: place <= places[unit_of(tag)]


POINTS = [("val/loss", 3), ("by_tokens/val_loss", 400), ("val/loss", 7), ("growth_marks/by_tokens/val_loss/1", 500)]


def test_each_tag_is_cut_off_in_its_own_unit_and_the_rest_stays_byte_for_byte(tmp_path):
    file = written(tmp_path, POINTS, texts=["about"])
    whole = records(file)
    assert cut_off(tmp_path, reached(steps=3, tokens=400)) == {"val/loss", "by_tokens/val_loss", "about/text_summary"}
    assert records(file) == [*whole[:3], *whole[5:]]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_without_such_points_is_not_touched(tmp_path):
    file = written(tmp_path, POINTS)
    before = file.stat().st_ino
    cut_off(tmp_path, reached(steps=7, tokens=500))
    assert file.stat().st_ino == before


def test_a_record_that_a_kill_left_half_written_is_no_obstacle(tmp_path):
    file = written(tmp_path, POINTS)
    whole = records(file)
    file.write_bytes(file.read_bytes()[:-5])
    cut_off(tmp_path, reached(steps=3, tokens=500))
    assert records(file) == whole[:3]


def test_a_failure_leaves_the_file_as_it_was_and_the_next_call_cleans_up(tmp_path, monkeypatch):
    file = written(tmp_path, POINTS)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(event_files, "write_records", lambda path, records: path.unlink())
        with pytest.raises(OSError, match="what was there before is untouched"):
            cut_off(tmp_path, reached(steps=3, tokens=500))
    assert file.read_bytes() == before
    (tmp_path / f".{file.name}.1.tmp").touch()  # of a process that was killed
    cut_off(tmp_path, reached(steps=7, tokens=500))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_an_event_of_several_points_keeps_some_of_them():
    values = [Summary.Value(tag=tag, simple_value=1.0) for tag in ("val/loss", "by_tokens/val_loss")]
    event = Event(step=9, wall_time=2.0, summary=Summary(value=values))
    rest = Event.FromString(kept_of(event.SerializeToString(), lambda tag, place: tag == "val/loss"))
    assert [value.tag for value in rest.summary.value] == ["val/loss"]
    assert (rest.step, rest.wall_time) == (9, 2.0)
