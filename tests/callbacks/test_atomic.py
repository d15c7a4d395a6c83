"""Files are written whole or not at all, and reading them needs neither torch nor Lightning."""

import json
import math
import subprocess
import sys

import pytest

from callbacks.atomic import write_json, write_text
from callbacks.record_file import last_checkpoint


@pytest.mark.parametrize("module", ["callbacks", "callbacks.atomic", "callbacks.record_file"])
def test_files_are_read_and_written_without_torch(module):
    program = f"import sys, {module}; print(*sorted(sys.modules.keys() & {{'lightning', 'rich', 'torch'}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_the_package_offers_its_names_and_no_others():
    import callbacks

    assert dir(callbacks) == callbacks.__all__
    for name in callbacks.__all__:
        assert getattr(callbacks, name).__name__ == name
    with pytest.raises(AttributeError, match="'callbacks' has no attribute 'Grwoth'"):
        _ = callbacks.Grwoth


def test_text_is_utf_8_in_folders_that_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "maté\n")
    assert path.read_bytes() == "maté\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_has_null_for_what_is_no_number_and_text_for_what_json_does_not_know(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"loss": math.nan, "list": [1.5, (-math.inf, 2)], "path": tmp_path})
    assert json.loads(path.read_text()) == {"loss": None, "list": [1.5, [None, 2]], "path": str(tmp_path)}
    assert path.read_text().endswith("}\n")
    write_json(path, {"a": 1}, indent=1)
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "whole")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\ud800")
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"could not write .*what was there before is untouched"):
        write_text(tmp_path, "a folder is there")


def test_the_last_checkpoint_is_where_checkpoints_saves_it(tmp_path):
    from callbacks import Checkpoints

    assert last_checkpoint(tmp_path) == Checkpoints.directory(tmp_path) / "last.ckpt"
