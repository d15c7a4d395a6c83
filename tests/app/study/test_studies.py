"""Studies as a user calls them: `compare` and `growth-study` on tiny models, killed, gone on with, and reported."""

import csv
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.__main__ import main
from app.machine import only_gpu
from app.output.intervals import spread
from app.run.folders import held
from app.study.gather import gather, records_in
from app.study.processes import is_done, outcome, plain_commands, resumed, stages
from app.study.study import Planned, Study, compact, read_study
from tests.app.forked import OUTPUT, wait_for

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PRESET = """
model: {{class_path: {model}, init_args: {{d_model: 16, num_heads: 2}}}}
data:
  class_path: CharText
  init_args: {{corpus: {corpus}, seq_len: 16, batch_size: 4, split: 90/10}}
optim: {{learning_rate: 1.0e-2, warmup_steps: 2}}
trainer: {{limit_val_batches: 2, limit_test_batches: 2}}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A text of words, so that there is something to learn."""
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("".join(f"the {n % 7} cats and {n % 5} dogs\n" for n in range(600)))
    return path


@pytest.fixture(scope="module")
def presets(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    for model in ("Transformer", "PotatoLM"):
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / f"{model.lower()}.yaml").write_text(PRESET.format(model=model, corpus=corpus))
    (folder / "space.yaml").write_text("{recipes: [xlstm], model: {local_mixing: [none, conv], num_heads: [2, 4]}}")
    return folder


def call(capsys, *args) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def without_first_line(printed: str) -> str:
    """What a study prints behind its first line, which comes before PyTorch is loaded and may come before a mistake."""
    return re.sub(r"\A(compare|growth-study): \d+ runs in \S+\n", "", printed)


def comparison(presets, out, *more) -> list:
    return [
        "compare", "--presets", presets, "--tasks", "[text]", "--models", "[Transformer,PotatoLM]", "--tokens", "1280",
        "--seeds", "[1,2]", "--validations", "2", "--out", out, *more,
    ]  # fmt: skip


def search(presets, out, *more) -> list:
    """The same, each of three trials a model at a third of the budget, the best at all of it."""
    return comparison(presets, out, "--search", "3", "--space", presets / "space.yaml", "--seeds", "[1]", *more)


def assert_answer_in_tensorboard(out, figures, words):
    """The study's own run has these figures and a text with these words, each once."""
    assert len(list(out.glob("*tfevents*"))) == 1
    events = EventAccumulator(str(out)).Reload()
    assert set(events.Tags()["images"]) == figures
    ((text,),) = [event.tensor_proto.string_val for event in events.Tensors("answer/text_summary")]
    assert words in text.decode()
    assert "![" not in text.decode()


# A record, made up ----------------------------------------------------------------------------------------------------


def record(**changes):
    """A record as `callbacks.records` writes it."""
    spent = {"step": 100, "tokens": 1000, "flops": 2000, "seconds": 1.5, "parameters": 50}
    history = [{**spent, "step": n, "train/loss": 3 - n / 100} for n in range(1, 101)]
    history.insert(50, {**spent, "step": 50, "val/loss": 2.5, "val/bits_per_char": 3.6, "val/loss/long": 2.6})
    return {
        "format": 1, "command": ["app"], "model": "Transformer", "model_options": {}, "history": history,
        "data": "CharText", "data_options": {}, "optim": {}, "seed": 1, "max_steps": 100, "versions": {"torch": "2"},
        "device": "cpu", "processes": 1, "precision": "32-true", **spent, "status": "finished", "growth_events": [],
        "final": {**spent, "val/loss": 2.512345678912},
    } | changes  # fmt: skip


def lay(folder, plain) -> Path:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(plain))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text("")
    return folder


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_compact_record_keeps_validations():
    short = compact(record())
    assert "command" not in short
    (validation,) = short["history"]
    assert validation["val/bits_per_char"] == 3.6
    assert "val/loss/long" not in validation
    assert short["final"]["val/loss"] == 2.512346


def test_a_study_is_read_as_it_was_written(tmp_path):
    plan = [Planned("a", {"seed": 1}, ["--x=1"]), Planned("b", {"seed": 2}, ["--x=2"], test=False)]
    study = Study("compare", "python -m app compare", {"n": 1}, plan, {"a": compact(record())}, {"rows": [1]})
    study.save(tmp_path)
    assert read_study(tmp_path / "study.json") == study
    assert [run.name for run in study.runs()] == ["a"]
    assert study.runs(seed=2) == []


@pytest.mark.parametrize(("content", "reason"), [
    ("{", "cannot be read as a study"),
    ('{"format": 9}', "format 9, not 1"),
    ('{"format": 1}', "'runs' is missing"),
    ("[]", "cannot be read as a study"),
])  # fmt: skip
def test_a_damaged_study_is_named(tmp_path, content, reason):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_study(tmp_path / "study.json")


def test_runs_are_gathered_from_folders_and_studies_and_what_is_damaged_is_named(tmp_path):
    lay(tmp_path / "runs" / "one", record())
    lay(tmp_path / "runs" / "deep" / "two", record(seed=2))
    lay(tmp_path / "runs" / "old", record(format=0))
    lay(tmp_path / "runs" / "broken", {})
    found = gather([tmp_path / "runs"])
    assert sorted(run.record["seed"] for run in found.runs) == [1, 2]
    assert len(found.skipped) == 2
    study = Study("compare", "", {}, [Planned(name, {}, []) for name in "abc"], {"a": record(), "b": record(seed=3)})
    study.findings = {"chosen": ["b"]}
    study.save(tmp_path / "runs" / "deep")
    assert sorted(run.record["seed"] for run in gather([tmp_path / "runs"]).runs) == [1, 3]
    assert list(records_in(tmp_path / "runs" / "one")) == [tmp_path / "runs" / "one" / "record.json"]


def test_the_outcome_is_of_the_validation_or_else_of_the_test():
    assert outcome(record(test={"test/loss": 1.0})) == "loss 2.512, 2 s"
    assert outcome(record(final={}, test={"test/accuracy": 0.25, "test/accuracy/long": 0.5})) == "accuracy 0.25, 2 s"
    assert outcome(record(status="failed: the loss is not finite", final={})) == "diverged"


# What is left to do ---------------------------------------------------------------------------------------------------


def test_what_is_left_of_a_run(tmp_path):
    run = Planned("a", {}, ["--x=1"])
    assert [stage[0] for stage in stages(run, tmp_path / "a")] == ["fit", "test"]
    folder = lay(tmp_path / "a", record(status="interrupted"))
    assert stages(run, folder)[0] == ["fit", "--x=1", "--run_dir", str(folder), "--ckpt_path", "auto"]
    (folder / "record.json").write_text(json.dumps(record()))
    assert [stage[0] for stage in stages(run, folder)] == ["test"]
    assert plain_commands([run], tmp_path).startswith("python -m app test --ckpt_path ")
    (folder / "record.json").write_text(json.dumps(record(test={"test/loss": 1.0})))
    assert is_done(run, folder)
    assert plain_commands([run], tmp_path) == ""
    (folder / "record.json").write_text(json.dumps(record(status="failed: the loss is not finite")))
    assert is_done(run, folder)


@pytest.mark.parametrize("limit", [["--trainer.limit_test_batches=3"], ["--trainer.limit_test_batches", "3"]])
def test_the_test_of_a_run_measures_as_much_as_the_study_says(tmp_path, limit):
    run = Planned("a", {}, ["--trainer.limit_val_batches=2", *limit, "--trainer.devices", "1"])
    fit, test = stages(run, tmp_path / "a")
    assert fit[1:5] == [*run.options][:4]
    assert test[3:] == limit


def test_other_options_under_the_same_name_are_refused(tmp_path):
    Study("compare", "", {}, [Planned("a", {}, ["--x=1", "--y=2"])]).save(tmp_path)
    with pytest.raises(ValueError, match=r"holds a with other options \(--x=1 -> --x=3\)"):
        resumed(Study("compare", "", {}, [Planned("a", {}, ["--x=3", "--y=2"])]), tmp_path)
    with pytest.raises(ValueError, match="made by `compare`"):
        resumed(Study("growth-study", "", {}, []), tmp_path)


def test_a_run_sees_the_gpu_that_it_was_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert only_gpu(1) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert only_gpu(1) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_a_damaged_study_is_made_anew_from_the_runs(tmp_path):
    lay(tmp_path / "a", record(test={"test/loss": 1.0}))
    (tmp_path / "study.json").write_text("{")
    study = Study("compare", "", {}, [Planned("a", {}, []), Planned("b", {}, [])])
    with pytest.raises(ValueError, match="move it away"):
        resumed(study, tmp_path)
    (tmp_path / "study.json").unlink()
    assert resumed(study, tmp_path).records.keys() == {"a"}


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with held(tmp_path, "--out"), pytest.raises(ValueError, match="works there"), held(tmp_path, "--out"):
        pass


# compare --------------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One that was killed and went on to its end.

    out: its folder. left: the commands that it said were left when it had been killed. ends: when the record of the run
    that was finished by then was written, before and after it went on.
    """

    out: Path
    left: str
    ends: tuple[int, int]

    @property
    def study(self) -> Study:
        return read_study(self.out / "study.json")


def quietly(*args) -> str:
    """What a command prints that succeeds."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        assert (main([str(arg) for arg in args]), err.getvalue()) == (0, "")
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(presets, tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("finished")
    out = folder / "study"
    command = [sys.executable, "-m", "app", *map(str, search(presets, out, "--workers", 1))]
    with (folder / OUTPUT).open("w") as output:  # a study's own processes are not to be forked from this one's
        process = subprocess.Popen(command, cwd=ROOT, stdout=output)
    wait_for("1/6 text-Transformer-1.28k-t0-r1: loss ", folder)
    assert (folder / OUTPUT).read_text().startswith(f"compare: 10 runs in {out}\n")
    process.terminate()
    assert process.wait(60) == 143
    done = out / "text-Transformer-1.28k-t0-r1" / "record.json"
    before, left = done.stat().st_mtime_ns, quietly(*search(presets, out, "--print_commands"))
    quietly(*search(presets, out, "--workers", 2))
    return Comparison(out, left, (before, done.stat().st_mtime_ns))


def test_a_comparison_that_was_killed_goes_on_with_what_is_left(presets, finished, tmp_path):
    assert finished.left.count("python -m app fit") == 5
    assert "python -m app test" not in finished.left  # which is not for choosing
    assert "-r2" not in finished.left  # of what the first rung has not decided yet
    assert finished.ends[0] == finished.ends[1]
    assert len(finished.study.records) == len(finished.study.plan) == 12
    finished.study.save(tmp_path)  # the file alone, as it is kept when the runs are thrown away
    assert quietly(*search(presets, tmp_path, "--print_commands")).strip() == ""


def test_a_search_takes_the_best_of_each_rung_and_measures_with_other_seeds(finished):
    study = finished.study
    measured = [run for run in study.runs() if "rung" not in run.labels]
    assert study.findings["chosen"] == [run.name for run in measured]
    assert {run.labels["seed"] for run in measured} == {1}
    assert {run.labels["seed"] for run in study.runs() if "rung" in run.labels} == {0}
    assert {run.record["tokens"] for run in measured} == {1280}
    assert {run.record["tokens"] for run in study.runs(rung=1)} == {448}
    assert all(not run.record.get("test") for run in study.runs() if "rung" in run.labels)
    assert all({"--data.split=90/5/5", "--data.test_seq_lens=[64, 256]"} <= set(run.options) for run in study.plan)
    for model, kept in (("Transformer", 1), ("PotatoLM", 3)):  # which in so few steps learns nothing
        best = sorted(study.runs(model=model, rung=1), key=lambda run: run.record["final"]["val/loss"])[:kept]
        last = study.runs(model=model, rung=2)
        assert [run.labels["trial"] for run in last] == [run.labels["trial"] for run in best]


def test_a_comparison_leaves_a_table_a_page_and_its_answer_in_tensorboard(finished):
    rows = list(csv.DictReader((finished.out / "compare.csv").open()))
    for row in finished.study.findings["rows"]:
        ours = [float(r["test/bits_per_char"]) for r in rows if r["model"] == row["model"] and r["chosen"] == "True"]
        assert row["values"][""] == pytest.approx(ours)
        assert row["search"]["trials"] == 3
    text = (finished.out / "compare.md").read_text()
    assert "| model | trials | lr x | chosen | remarks |" in text
    assert " T=64 | T=256 |" in text
    assert_answer_in_tensorboard(finished.out, {"answer/study-text"}, "| model | trials | lr x | chosen | remarks |")


def test_a_comparison_is_reported(finished, tmp_path):
    results = tmp_path / "RESULTS.md"
    quietly("report", finished.out, "--out", results)
    text = results.read_text()
    for row in finished.study.findings["rows"]:
        assert f"| {spread(row['values'][''])} |" in text
    assert (tmp_path / "results" / "study-text.png").read_bytes().startswith(b"\x89PNG")
    quietly("report", finished.out, "--out", results)
    assert results.read_text() == text


def test_a_finished_comparison_trains_nothing_again_and_refuses_other_options(presets, finished, capsys):
    before = (finished.out / "study.json").read_bytes()
    assert not re.search(r"^\d+/\d+ ", quietly(*search(presets, finished.out)), re.M)
    assert (finished.out / "study.json").read_bytes().split(b"\n", 1)[1] == before.split(b"\n", 1)[1]
    code, _, err = call(capsys, *search(presets, finished.out, "--validations", "1"))
    assert code == 2
    assert "with other options" in err


def test_without_a_search_files_are_taken_as_they_are_or_at_given_learning_rates(presets, tmp_path, capsys):
    printed = call(capsys, *comparison(presets, tmp_path / "a", "--print_commands"))[1]
    assert re.findall(r"--run_dir \S*-(\S+) ", printed) == ["s1", "s2"] * 2
    assert "--optim." not in printed
    rates = ("--learning_rates", "[0.1,1]", "--print_commands")
    printed = call(capsys, *comparison(presets, tmp_path / "b", *rates))[1]
    assert (
        re.findall(r"--optim\S*|--seed_everything=0", printed)
        == ["--optim.learning_rate=0.001", *["--seed_everything=0"] * 2] * 2
    )
    alone = ("--learning_rates", "[0.1]", "--print_commands")
    printed = call(capsys, *comparison(presets, tmp_path / "c", *alone))[1]
    assert re.findall(r"--optim\S*", printed) == ["--optim.learning_rate=0.001"] * 4


def test_each_width_is_trained_with_each_number_of_layers(presets, tmp_path, capsys):
    sizes = ("--models", "[Transformer]", "--d_models", "[16,32]", "--num_layers", "[1,3]", "--seeds", "[1]")
    code, printed, err = call(capsys, *comparison(presets, tmp_path / "a", *sizes, "--print_commands"))
    assert (code, err) == (0, "")
    assert re.findall(r"--run_dir \S*-Transformer(\S+)-1.28k-s1 ", printed) == [
        "-d16-l1",
        "-d16-l3",
        "-d32-l1",
        "-d32-l3",
    ]
    assert re.findall(r"--model.num_layers=(\d)", printed) == ["1", "3"] * 2


@pytest.mark.parametrize(("options", "message"), [
    (["--tokens", "100"], "--tokens 100 are 2 steps of Transformer on text, not more than the 2 of its warm-up"),
    (["--tokens", "0"], "--tokens [0.0] must be above 0"),
    (["--flops", "1e9"], "give one budget: --tokens, such as 1e6, or --flops"),
    (["--models", "[Transfomer]"], "no such model; did you mean 'Transformer'?"),
    (["--models", "[Palm]"], "has no file text/*.yaml whose model is Palm; write one, as text/palm.yaml"),
    (["--tasks", "[txt]"], "--tasks txt: no such task; did you mean 'text'?"),
    (["--d_models", "[15]"], "--d_models 15: --model.d_model 15 does not split"),
    (["--d_models", "[16,0]"], "--d_models is 0; it must be at least 1"),
    (["--num_layers", "[0]"], "--num_layers is 0; it must be at least 1"),
    (["--num_layers", "[2,2]"], "--num_layers [2, 2] names one twice"),
    (["--d_models", "[15]", "--num_layers", "[2]"], "--d_models 15 and --num_layers 2: --model.d_model 15 does not"),
    (["--seeds", "[1,1]"], "--seeds [1, 1] names one twice"),
    (["--seeds", "[-1]"], "--seeds -1 is not between 0 and 2^32 - 1"),
    (["--learning_rates", "[0]"], "--learning_rates [0.0] must be above 0"),
    (["--search", "-1"], "--search is -1; it must be at least 1, or 0 for no search"),
    (["--search", "3", "--learning_rates", "[1,3]"], "--search tries learning rates, too; leave --learning_rates out"),
    (["--search", "3", "--seeds", "[0,1]"], "--seeds [0, 1] has 0, the seed that chooses; leave it out, or"),
    (["--search", "9"], "trials of Transformer on text, at 0.111 of it, have 2 steps, fewer than 5"),
    (["--search", "3", "--space", "nowhere.yaml"], "--space nowhere.yaml is no file; name one as app/configs/search.y"),
    (["--space", "nowhere.yaml"], "--space nowhere.yaml is what a search chooses from; say how many it"),
    (["--workers", "0"], "--workers is 0; it must be at least 1"),
    (["--trainer.max_steps", "3"], "--trainer.max_steps is given by the study's own options"),
    (["--trainer.acelerator", "cpu"], "did you mean '--trainer.accelerator'?"),
    (["--presets", "nowhere"], "--presets nowhere is no folder"),
])  # fmt: skip
def test_mistakes_of_a_comparison_end_in_one_line(presets, tmp_path, capsys, options, message):
    code, out, err = call(capsys, *comparison(presets, tmp_path / "study", *options))
    assert code == 2
    assert without_first_line(out) == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_a_file_as_print_config_writes_it_is_read_as_fit_reads_it(presets, tmp_path, capsys):
    with pytest.raises(SystemExit):  # of jsonargparse
        call(capsys, "fit", "--config", presets / "text" / "potatolm.yaml", "--print_config")
    whole = capsys.readouterr().out
    assert "class_path: models.PotatoLM" in whole
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "whole.yaml").write_text(whole)
    lines = []
    for folder in (presets, tmp_path):
        options = ["--models", "[PotatoLM]", "--d_models", "[32]", "--print_commands"]
        code, printed, err = call(capsys, *comparison(folder, tmp_path / "out", *options))
        assert (code, err) == (0, "")
        lines.append(re.sub(r"--config=\S+", "", printed))
    assert lines[0] == lines[1]
    assert " --model.d_model=32 --model.num_heads=4 " in lines[0]


@pytest.mark.parametrize(("content", "message"), [
    (PRESET.format(model="models.PotatoLM", corpus="x"), "several files of PotatoLM on text: {0}/a.yaml, {0}/b.yaml;"),
    ("optim: {beta1: 0.5, beta1: 0.6}", "--presets {0}/b.yaml: beta1 stands in line 1 and again in line 1"),
    ("model: [", "--presets {0}/b.yaml is not a YAML file"),
    ("model: {class_path: PotatoLN}", "--presets {0}/b.yaml: --model PotatoLN does not exist; did you mean 'Pot"),
    ("optim: {beta: 0.5}", "--presets {0}/b.yaml: unknown option --optim.beta; did you mean '--optim.beta"),
])  # fmt: skip
def test_files_that_will_not_do_are_named(presets, tmp_path, capsys, content, message):
    (tmp_path / "text").mkdir()
    for name, text in (("a", (presets / "text" / "potatolm.yaml").read_text()), ("b", content)):
        (tmp_path / "text" / f"{name}.yaml").write_text(text)
    code, out, err = call(capsys, *comparison(tmp_path, tmp_path / "study", "--models", "[PotatoLM]"))
    assert code == 2
    assert without_first_line(out) == ""
    assert message.format(tmp_path / "text") in err
    assert err.count("\n") == 1


# growth-study ---------------------------------------------------------------------------------------------------------


def study_of_growth(corpus, out, *more) -> list:
    return [
        "growth-study", "--data.corpus", corpus, "--seeds", "[1]", "--questions", "[chain]", "--sizes", "[4]",
        "--chain_shares", "[0.3,0.3]", "--shares", "[0.1]", "--scratch_budgets", "[1]", "--learning_rates", "[1]",
        "--flops", "6e7", "--val_batches", "2", "--test_batches", "4", "--model.d_model", "16", "--model.num_heads",
        "2", "--model.num_param_tokens", "8", "--model.num_ffn_param_tokens", "16", "--data.seq_len", "16",
        "--data.batch_size", "4", "--optim.warmup_steps", "1", "--out", out, *more,
    ]  # fmt: skip


def test_growth_is_compared_at_equal_flops(corpus, tmp_path, capsys):
    out = tmp_path / "growth"
    code, printed, err = call(capsys, *study_of_growth(corpus, out))
    assert (code, err) == (0, "")
    assert "8/8" in printed
    study = read_study(out / "study.json")
    records = {run.labels["arm"]: run.record for run in study.runs()}
    whole = records["tokens4-scratch"]
    step = whole["flops"] / whole["step"]
    for run in study.runs(budget=1.0):
        assert abs(run.record["flops"] - 6e7) <= step  # all stages counted
    chain, branch = records["tokens4-grown"], records["tokens2-branch"]
    assert chain["parameters"] == whole["parameters"] > branch["parameters"]
    (labels,) = [run.labels for run in study.runs(arm="tokens4-grown")]
    events = chain["growth_events"]
    assert [event["step"] for event in events] == [sum(labels["stages"][:n]) for n in (1, 2)]
    assert all(abs(event["bits_per_char_after"] - event["bits_per_char_before"]) < 1e-4 for event in events)
    for key in ("step", "flops", "bits_per_char_before", "relative_change"):  # the same run until there
        assert branch["growth_events"][0][key] == events[0][key]
    assert "The chain gives 3 sizes" in (out / "growth_study.md").read_text()
    figures = {"answer/growth_study", "answer/growth_study-flops"}
    assert_answer_in_tensorboard(out, figures, "The chain gives 3 sizes")
    assert len(list(csv.DictReader((out / "growth_study.csv").open()))) == 8
    code, printed, _ = call(capsys, *study_of_growth(corpus, out))
    assert code == 0
    assert not re.search(r"^\d+/\d+ ", printed, re.M)
    code, _, _ = call(capsys, "report", out, "--out", tmp_path / "R.md")
    text = (tmp_path / "R.md").read_text()
    assert code == 0
    assert "## Does growing TokenFormer pay?" in text
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"growth.png", "growth-flops.png"}


@pytest.mark.parametrize(("options", "message"), [
    (["--recipes", "[exakt]", "--questions", "[chain,recipes]"], "--recipes exakt: no such recipe"),
    (["--recipes", "[zero_keys]"], "--recipes ['zero_keys'] is of no use without recipes in --questions ['chain']"),
    (["--questions", "[layer]"], "--questions layer: no such question; did you mean 'layers'?"),
    (["--flops", "1e6"], "--flops 1e+06: tokens1-scratch would have 1 steps"),
    (["--shares", "[1.5]"], "--shares [1.5]: a share is between 0 and 1"),
    (["--seeds", "[0,1]"], "--seeds [0, 1] has 0, the seed that chooses; leave it out"),
    (["--data.corpus", "nowhere.txt"], "--data.corpus nowhere.txt"),
    (["--model.num_headz", "2"], "did you mean '--model.num_heads'?"),
    (["--data.seed", "1"], "--data.seed is given by the study's own options"),
    (["--optim.learning_rate", "-1"], "--optim.learning_rate"),
])  # fmt: skip
def test_mistakes_of_a_growth_study_end_in_one_line(corpus, tmp_path, capsys, options, message):
    code, out, err = call(capsys, *study_of_growth(corpus, tmp_path / "study", *options))
    assert code == 2
    assert without_first_line(out) == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "study").exists()


# report ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "message"), [
    ([], "FILES hold no study: name a study.json"),
    (["nowhere.json"], "FILES nowhere.json does not exist"),
    (["note.txt"], "FILES hold no study: note.txt cannot be read as a study"),
    (["study.json", "--out", "note.txt"], "--out note.txt exists and was not made by report"),
    (["study.json", "--out", "."], "--out . is a folder"),
    (["study.json"], "FILES hold no finished run yet"),
])  # fmt: skip
def test_mistakes_of_a_report_end_in_one_line(tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("mine\n")
    Study("compare", "", {"d_models": [0]}, [Planned("a", {}, [])]).save(tmp_path)
    code, _, err = call(capsys, "report", *args)
    assert code == 2
    assert message in err
    assert Path("note.txt").read_text() == "mine\n"
    assert not Path("RESULTS.md").exists()


def test_results_are_what_report_makes_of_the_committed_studies(tmp_path, capsys):
    """Nobody types a number into RESULTS.md; the last digits of a fit may differ between machines."""
    results = (ROOT / "RESULTS.md").read_text()
    (files,) = re.findall(r"`python -m app report (.+)` made this file", results)
    assert call(capsys, "report", *(ROOT / name for name in files.split()), "--out", tmp_path / "RESULTS.md")[0] == 0
    made = (tmp_path / "RESULTS.md").read_text()
    numbers = re.compile(r"(?<![\w.])[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
    ours, theirs = (re.sub(r"`python -m app.*?` made this file", "", text) for text in (results, made))
    assert numbers.sub("#", ours) == numbers.sub("#", theirs)
    pairs = zip(*([float(n.replace(",", "")) for n in numbers.findall(text)] for text in (ours, theirs)), strict=True)
    assert all(a == pytest.approx(b, rel=0.05, abs=2e-3) for a, b in pairs)
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(re.findall(r"\(results/(.+?)\)", results))
