"""TensorBoard's event files of a run that goes on, cut off at its checkpoint.

What an interrupted run wrote beyond the checkpoint would be there twice. TensorBoard's own purge discards by one unit
for a whole folder; here each tag has its unit, so that tokens, FLOPs and optimizer steps can lie in one folder. What is
kept stays byte for byte, and a file is replaced whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from callbacks.atomic import save_atomically

EVENT_FILES = "events.out.tfevents.*"
Kept = Callable[[str, int], bool]  # of the tag and place of a point, whether it stays


def cut_off(folder: Path, is_kept: Kept) -> set[str]:
    """Take the points that are not kept out of the event files in a folder; returns the tags of those that stay.

    A file without such points is not touched. What follows a record that a kill left half written is lost, as
    TensorBoard does not read it either. Raises OSError where a file cannot be written.
    """
    tags = set()
    for leftover in folder.glob(f".{EVENT_FILES}.tmp"):
        leftover.unlink()
    for file in folder.glob(EVENT_FILES):
        records = list(RawEventFileLoader(str(file)).Load())
        kept = [rest for record in records if (rest := kept_of(record, is_kept))]
        tags |= {value.tag for record in kept for value in Event.FromString(record).summary.value}
        if kept != records:
            save_atomically(partial(write_records, records=kept), file)
    return tags


def kept_of(record: bytes, is_kept: Kept) -> bytes:
    """What stays of an event: all of its bytes, those of some of its points, or nothing."""
    event = Event.FromString(record)
    points = [value for value in event.summary.value if is_kept(value.tag, event.step)]
    if len(points) == len(event.summary.value):
        return record
    del event.summary.value[:]
    event.summary.value.extend(points)
    return event.SerializeToString() if points else b""


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write an event file."""
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
