"""What `runs` lists: each run's size, best validation and state, whatever lies in its folder."""

import json
import os
import re
from io import StringIO
from pathlib import Path

import pytest

from app.run.folders import held, is_held
from app.study.runs import best_validation, in_order, matches, read_run, run_folders
from tests.app.test_cli import assert_refused, call, files

FIT = "python -m app fit --ckpt_path"


class Terminal(StringIO):
    def isatty(self):
        return True


def point(step, **values):
    return {"step": step, **{f"val/{name}": value for name, value in values.items()}}


def record(status="finished", *history, model="Palm", data="Copying", corpus=None, **changes):
    """A record as a run writes it, of what is read of it."""
    plain = {
        "format": 1, "status": status, "model": model, "data": data, "data_options": {"corpus": corpus} if corpus else
        {}, "chance": {"bits_per_char" if corpus else "accuracy": 0.1}, "seed": 1, "parameters": 47_464, "step": 40,
        "max_steps": 1000, "tokens": 2560, "flops": 1e9, "seconds": 7.5, "growth_events": [], "history": list(history),
    }  # fmt: skip
    return plain | changes


def make_run(folder, content, checkpoint=True):
    """A run's folder, with this record: a mapping, or text as it is."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / ".lock").write_text("process 1 on there")
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "record.json").write_text(text, encoding="utf-8")
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").touch()
    return folder


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of runs in all states, some of them of a study."""
    monkeypatch.chdir(tmp_path)
    text = point(500, bits_per_char=2.34, loss=1.62), point(1000, bits_per_char=2.36, loss=1.63)
    grown = {"growth_events": [{}, {}], "parameters": 1_234_567, "max_steps": 0}
    make_run(Path("runs/text"), record("finished", *text, model="TokenFormer", corpus="data/tiny.txt", **grown))
    make_run(Path("runs/study/copying-s10"), record("interrupted", point(20, accuracy=0.5, loss=2.0)))
    make_run(Path("runs/study/copying-s9"), record("failed: no space left on device", point(20, accuracy=0.7)))
    make_run(Path("runs/study/diverged"), record("failed: train/loss is not finite", max_steps=60))
    make_run(Path("runs/study/killed"), record("running"))
    make_run(Path("runs/study/young"), None, checkpoint=False)
    make_run(Path("runs/study/damaged"), '{"format": 1, "his')
    Path("runs/study/logs").mkdir()
    Path("runs/study/study.json").touch()
    make_run(Path("runs/study/.hidden"), record())
    Path("runs/study/text").symlink_to("../text")
    Path("runs/study/loop").symlink_to("..")
    return tmp_path


def listed(options=""):
    code, out, err = call(f"runs --json {options}")
    assert (code, err) == (0, "")
    return {run["name"]: run for run in json.loads(out)}


# One run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "metric", "best", "step"),
    [
        ({"bits_per_char": 4.8}, "val/bits_per_char", 2.0, 20),
        ({"accuracy": 0.1}, "val/accuracy", 0.9, 10),
        ({"exact_match": 0.0}, "val/exact_match", 0.25, 10),
        ({}, "val/bits_per_char", 2.0, 20),
    ],
)
def test_the_best_validation_is_by_the_metric_that_judges_the_task(chance, metric, best, step):
    history = [
        point(10, bits_per_char=3.0, accuracy=0.9, exact_match=0.25),
        {"step": 15, "train/loss": 1.0},
        point(20, bits_per_char=2.0, accuracy=0.9, exact_match=0.0),
        point(30, bits_per_char=None, accuracy=None, exact_match=None),  # not finite
    ]
    found = best_validation({"chance": chance, "history": history})
    assert found == {"metric": metric, "best": best, "best_step": step}


def test_before_the_first_validation_there_is_no_best():
    assert best_validation({"chance": {"accuracy": 0.1}, "history": [{"step": 1, "train/loss": 1.0}]}) == {}


def test_the_lock_tells_a_run_that_goes_on_from_one_that_was_killed(tmp_path):
    folder = make_run(tmp_path / "a", record("running"))
    before, changed = files(folder), (folder / ".lock").stat().st_mtime_ns
    killed = read_run(folder, tmp_path)
    assert (killed.state, killed.go_on) == ("interrupted", f"{FIT} {folder}")
    assert (files(folder), (folder / ".lock").stat().st_mtime_ns) == (before, changed)
    with held(folder, "--run_dir"):
        going = read_run(folder, tmp_path)
        assert (going.state, going.go_on) == ("running", None)
    assert not is_held(folder)


@pytest.mark.parametrize("name", ["status", "parameters", "step", "history", "growth_events"])
@pytest.mark.parametrize("value", [None, "x", 3.5])
def test_a_record_that_is_not_whole_is_a_row_that_says_so(tmp_path, name, value):
    content = record() | {name: value}
    found = read_run(make_run(tmp_path / "a", content), tmp_path)
    assert (found.state, found.model) == ("damaged", None)
    assert name in found.why or "format" in found.why
    del content[name]
    assert read_run(make_run(tmp_path / "b", content), tmp_path).state == "damaged"


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"format": 1, "history": [', "\0", '{"format": 1, "history": [3]}']
)
def test_what_is_no_record_is_a_row_that_says_so(tmp_path, text):
    found = read_run(make_run(tmp_path / "a", text), tmp_path)
    assert (found.state, "record" in found.why, found.go_on) == ("damaged", True, f"{FIT} {tmp_path / 'a'}")


# Many runs ------------------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_each_once(tree):
    found = [str(path) for path in run_folders(Path("runs"))]
    assert len(found) == 7 == len({Path(path).resolve() for path in found})
    assert not [path for path in found if "hidden" in path]
    (alone,) = run_folders(Path("runs/text"))
    assert read_run(alone, Path("runs/text")).name == "text"


def test_orders_are_of_numbers_and_the_unknown_comes_last(tmp_path):
    best = {"lr0.5": 0.7, "lr0.25": 0.5, "lr10": 0.9}
    for age, (name, accuracy) in enumerate(best.items()):
        folder = make_run(tmp_path / name, record("finished", point(9, accuracy=accuracy), parameters=100 - age))
        os.utime(folder / ".lock", (age + 1, age + 1))
    make_run(tmp_path / "text", record("interrupted", point(9, bits_per_char=3.0), point(9, loss=9.0), chance={}))
    make_run(tmp_path / "a", "{}")
    runs = [read_run(path, tmp_path) for path in run_folders(tmp_path)]

    def names(sort):
        return " ".join(run.name for run in in_order(runs, sort))

    assert names("name") == "a lr0.25 lr0.5 lr10 text"
    assert names("best") == "lr10 lr0.5 lr0.25 text a"
    assert names("parameters") == "lr10 lr0.25 lr0.5 text a"
    assert names("date").endswith("lr10 lr0.25 lr0.5")
    assert names("state") == "text a lr0.25 lr0.5 lr10"


def test_a_filter_wants_all_its_words(tree):
    run = read_run(Path("runs/text"), Path("runs"))
    assert all(matches(run, words) for words in ("", "TOKEN", "text finished", "tiny.txt"))
    assert not matches(run, "text palm")


# The command line -----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_run_and_says_how_to_go_on(tree):
    code, out, err = call("runs")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(" ") and line.strip(" ─")}
    assert list(rows)[1:] == [*(f"study/{n}" for n in ("copying-s9", "copying-s10", "damaged", "diverged", "killed",
                                                        "young")), "text"]  # fmt: skip
    assert re.split(" {2,}", rows["text"].strip()) == [
        "text", "TokenFormer", "1.23M", "Copying tiny.txt", "40", "2.340 bits/char", "2", "finished",
    ]  # fmt: skip
    assert re.split(" {2,}", rows["study/copying-s10"].strip())[2:] == [
        "47.5k", "Copying", "40 of 1,000", "accuracy 0.500", "0", "interrupted",
    ]  # fmt: skip
    assert "7 runs in runs: 3 interrupted, 2 failed, 1 damaged, 1 finished\n" in out
    assert f"study/killed: go on with `{FIT} runs/study/killed`\n" in out
    assert f"study/copying-s9: no space left on device; go on with `{FIT} runs/study/copying-s9`\n" in out
    assert "study/diverged: train/loss is not finite\n" in out
    assert "study/young: it has no checkpoint to go on from\n" in out
    assert re.search(r"^study/damaged: runs/study/damaged/record.json cannot be read as a record: .*; go on", out, re.M)
    assert "text: " not in out


def test_programs_get_every_field_of_every_run(tree):
    found = listed()
    assert len({tuple(run) for run in found.values()}) == 1
    text = found["text"]
    assert text.pop("began").endswith("+00:00")
    assert text == {
        "name": "text", "folder": "runs/text", "state": "finished", "why": None, "go_on": None, "model": "TokenFormer",
        "data": "Copying", "corpus": "data/tiny.txt", "seed": 1, "parameters": 1_234_567, "growths": 2, "step": 40,
        "max_steps": 0, "tokens": 2560, "flops": 1e9, "seconds": 7.5, "metric": "val/bits_per_char", "best": 2.34,
        "best_step": 500,
    }  # fmt: skip
    assert listed("runs/study --filter 'palm failed'").keys() == {"copying-s9", "diverged"}
    assert list(listed("--sort parameters --filter finished")) == ["text"]


def test_a_text_in_several_files_is_named_by_them(tmp_path):
    folder = make_run(tmp_path / "run", record(corpus=["data/a.txt", "b.txt.gz"]))
    assert read_run(folder, tmp_path).corpus == "[a.txt,b.txt.gz]"


def test_a_narrow_terminal_folds_names_and_then_shows_paragraphs(tree, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    code, out, _ = call("runs --filter finished", Terminal())
    assert (code, out.splitlines()[0]) == (0, "text")
    assert "TokenFormer, parameters 1.23M, Copying" in out
    make_run(Path("runs/study") / f"a-name-{'that-goes-on-' * 4}s1", record())
    monkeypatch.setenv("COLUMNS", "110")
    out = re.sub(r"\x1b\[\d*m", "", call("runs --filter study", Terminal()).out)  # titles are bold
    table = out[: out.index("7 runs in")].splitlines()
    assert max(map(len, table)) <= 110
    names = "".join(line[1:].split(" ")[0] for line in table)
    assert f"a-name-{'that-goes-on-' * 4}s1" in names


def test_a_name_is_printed_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/[bold]a b"), record("interrupted"))
    out = call("runs").out
    assert out.count("[bold]a b") == 3
    assert f"{FIT} 'runs/[bold]a b'" in out


def test_no_folder_and_no_runs_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(call("runs"), "FOLDER runs does not exist")
    Path("file").touch()
    assert_refused(call("runs --json file"), "FOLDER file is no folder")
    Path("runs").mkdir()
    assert call("runs") == (0, "runs has no runs yet; train with `python -m app fit`\n", "")
    assert listed() == {}
    make_run(Path("runs/a"), record())
    assert call("runs --filter moss").out == "--filter moss: none of the 1 runs in runs has these words\n"
