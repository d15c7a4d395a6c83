"""`python -m app scorecard`: verdicts on made-up numbers, tables, files, mistakes, tiny runs. No time is asserted."""

import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

import models
from app.__main__ import main
from app.cli import names
from app.cli.groups import split_groups
from app.output.numbers import number
from app.scorecard import measure as measuring
from app.scorecard import requirements as verdicts
from app.scorecard.candidates import Spec, baseline
from app.scorecard.card import (
    Finding,
    Measure,
    Scorecard,
    card_markdown,
    renderables,
    summary_markdown,
    summary_table,
)
from app.scorecard.command import BudgetName, Task
from app.scorecard.costs import Costs, Streamed, Timing
from app.scorecard.measure import Budget
from app.scorecard.operations import Probed
from app.scorecard.report import write_events
from app.scorecard.training import BINDING, TASKS, Learning
from app.study import processes
from app.study.study import Planned, Study, compact, read_study
from callbacks.record_file import read_record
from datamodules.binding import ROLES
from models.optim import Optim

LEARNING = Learning(
    2,
    2,
    2,
    2,
    copying_rows=2,
    recall_rows=1,
    char_rows=2,
    binding_rows=4,
    seq_len=16,
    test_rows=1,
    binding_test_rows=8,
    test_chars=1024,
)
TIMING = Timing((16, 32), tokens=32, repeats=1, seconds=0.0, stream_tokens=200, stream_seconds=60.0)
TINY = Budget(LEARNING, TIMING, seeds=1)
OURS = Spec("Palm", {"d_model": 16, "num_heads": 2, "num_layers": 1, "rank": 2}, Optim())
REQUIREMENTS = (
    "sub-quadratic", "parallel over time", "as good on the three tasks", "no maximum length", "faster", "no task rules",
    "fewer parameters", "not an existing method", "asymmetric, ordered, compositional",
)  # fmt: skip


# Verdicts -------------------------------------------------------------------------------------------------------------


def trained(results, spec=OURS, **options):
    """The record of a training that gave these results in its test; without any if it diverged."""
    model = getattr(models, spec.model)(**spec.options | {"vocab_size": 5} | options)
    status = "finished" if results else "failed: --optim.learning_rate: the loss is not finite"
    test = {"test": {f"test/{name}": value for name, value in results.items()}} if results else {}
    return {
        "model": spec.model, "model_options": dict(model.hparams), "optim": asdict(spec.optim), "status": status,
        "parameters": model.num_parameters(), "tokens": 1, "history": [], **test,
    }  # fmt: skip


def text(bits, longer=0.0):
    lengths = (16, 64, 256, 1024)
    return {"bits_per_char": bits} | {f"bits_per_char/T={T}": bits + longer * (T == 64) for T in lengths}


def recalled(accuracy, easiest=0.9, by_value=0.0):
    return {"accuracy": accuracy, "accuracy/64x4": easiest, "accuracy/64x4-by-value": by_value}


def bound(own):
    return {f"accuracy/{role}": share for role, share in zip(ROLES, (own, 1 - own, 0.0, 0.0), strict=True)}


RESULTS = {"copying": {"accuracy": 0.6}, "recall": recalled(0.7), "char_text": text(2.2), BINDING: bound(0.9)}
WORSE = {
    "copying": {"accuracy": 0.5}, "recall": recalled(0.6, 0.8), "char_text": text(2.3, longer=3.0), BINDING: bound(0.5),
}  # fmt: skip
PROBED = Probed((64, 4096), (100, 136), (1024, 4096), (1024, 4096), 131, ())
COSTS = Costs((16, 32), (0.9, 0.8), (0.7, 0.6), (1.1, 1.7), (1.0, 1.0), (0.0, 0.5))
STREAMED = Streamed(1000, 1000, 1.1, (8, 8))


def study_of(records):
    """A study of trainings (configuration, task, record) that are done."""
    labels = [{"task": task, "seed": seed, "spec": asdict(spec)} for seed, (spec, task, _) in enumerate(records)]
    plan = [Planned(str(number), of_one, []) for number, of_one in enumerate(labels)]
    return Study("scorecard", "", {}, plan, {run.name: one for run, (*_, one) in zip(plan, records, strict=True)})


def measured(tasks=None, baselines=None, **changes):
    """A candidate that passes everything, but for the changes: records by task, None for what was not trained."""
    ours = {task: trained(results) for task, results in RESULTS.items()} | (tasks or {})
    theirs = {task: trained(results, baseline(OURS, task)) for task, results in WORSE.items()} | (baselines or {})
    records = [(OURS, task, one) for task, one in ours.items() if one]
    records += [(baseline(OURS, task), task, one) for task, one in theirs.items()]
    whole = verdicts.Measured(OURS, LEARNING, study_of(records), (PROBED, PROBED), COSTS, (STREAMED, STREAMED))
    return replace(whole, **changes)


def verdicts_of(m):
    return {finding.requirement: finding.passed for finding in verdicts.findings(m)}


def test_who_passes_everything_passes_everything():
    assert verdicts_of(measured()) == dict.fromkeys(REQUIREMENTS, True)


THREE, BINDS = "as good on the three tasks", "asymmetric, ordered, compositional"
LOOP, PAIRS = replace(PROBED, counts=(100, 160)), replace(PROBED, pairs=("bmm (131, 131)",))
FAILURES = {
    "time": ({"costs": replace(COSTS, time_exponents=(1.6, 1.7))}, {"sub-quadratic": False}),
    "memory": ({"costs": replace(COSTS, memory_exponents=(1.3, 1.0))}, {"sub-quadratic": False}),
    "tensor": ({"probed": (replace(PROBED, largest=(1, 16)), PROBED)}, {"sub-quadratic": False}),
    "time not fitted": ({"costs": replace(COSTS, time_exponents=(None, None))}, {"sub-quadratic": None}),
    "loop": ({"probed": (LOOP, PROBED)}, {"parallel over time": False}),
    "pairs": ({"probed": (PAIRS, PROBED)}, {"not an existing method": False}),
    "the baseline's pairs": ({"probed": (PROBED, PAIRS)}, {}),
    "copying": ({"tasks": {"copying": trained({"accuracy": 0.49})}}, {THREE: False}),
    "recall": ({"tasks": {"recall": trained(recalled(0.55))}}, {THREE: False}),
    "an untrained baseline is no bar": (
        {"baselines": {"recall": trained(recalled(0.4), baseline(OURS, "recall"))}},
        {THREE: None},
    ),
    "both at chance": (
        {
            "tasks": {"recall": trained(recalled(0.01))},
            "baselines": {"recall": trained(recalled(0.0), baseline(OURS, "recall"))},
        },
        {THREE: False},
    ),
    "bits": ({"tasks": {"char_text": trained(text(2.31))}}, {THREE: False}),
    "a loss that is not finite": (
        {"tasks": {"char_text": trained(text(float("nan")))}},
        {THREE: False, "no maximum length": False},
    ),
    "diverged": ({"tasks": {"char_text": trained({})}}, {THREE: False, "no maximum length": False}),
    "diverged when it had to recall": ({"tasks": {"recall": trained({})}}, {THREE: False, BINDS: False}),
    "the baseline diverged": (
        {"baselines": {task: trained({}, baseline(OURS, task)) for task in WORSE}},
        {THREE: None},
    ),
    "a task that was not trained": (
        {"tasks": {"copying": None}},
        {THREE: None, "fewer parameters": None},
    ),
    "recall that was not trained": (
        {"tasks": {"recall": None}},
        {THREE: None, "fewer parameters": None, BINDS: None},
    ),
    "longer windows": ({"tasks": {"char_text": trained(text(2.2, longer=0.06))}}, {"no maximum length": False}),
    "slower and slower": ({"streamed": (replace(STREAMED, slowdown=1.6), STREAMED)}, {"no maximum length": False}),
    "growing": (
        {"streamed": (replace(STREAMED, tokens=300, state_bytes=(8, 16)), STREAMED)},
        {"no maximum length": False},
    ),
    "broken off": ({"streamed": (replace(STREAMED, tokens=300), STREAMED)}, {"no maximum length": None}),
    "broken off, but slower already": (
        {"streamed": (replace(STREAMED, tokens=300, slowdown=1.6), STREAMED)},
        {"no maximum length": False},
    ),
    "training at one length": ({"costs": replace(COSTS, training=(1.0, 0.5))}, {"faster": False}),
    "decoding at one length": ({"costs": replace(COSTS, decoding=(0.5, 1.1))}, {"faster": False}),
    "no length": ({"costs": replace(COSTS, seq_lens=(), training=(), decoding=())}, {"faster": None}),
    "another configuration": (
        {"tasks": {"copying": trained({"accuracy": 0.6}, dropout=0.1)}},
        {"no task rules": False},
    ),
    "as many parameters": (
        {"baselines": {"copying": trained({"accuracy": 0.5})}},
        {"fewer parameters": False},
    ),
    "another body": (
        {"tasks": {"copying": (one := trained({"accuracy": 0.6})) | {"parameters": one["parameters"] + 1}}},
        {"fewer parameters": False},
    ),
    "does not recall": ({"tasks": {"recall": trained(recalled(0.7, easiest=0.4))}}, {BINDS: False}),
    "recalls both ways": ({"tasks": {"recall": trained(recalled(0.7, by_value=0.9))}}, {BINDS: False}),
    "binds by a shortcut": ({"tasks": {BINDING: trained(bound(0.5))}}, {BINDS: False}),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_fails_its_requirement_alone(name):
    changes, expected = FAILURES[name]
    assert verdicts_of(measured(**changes)) == dict.fromkeys(REQUIREMENTS, True) | expected


def test_several_seeds_count_by_their_mean_and_show_their_spread():
    copies = [(OURS, "copying", trained({"accuracy": value})) for value in (0.3, 0.5, 0.7)]
    measure = verdicts.answers(measured(study=study_of(copies)), "copying", "copying")
    assert (measure.value, measure.spread) == (pytest.approx(0.5), pytest.approx(0.2))
    assert (measure.passed, measure.note) == (None, "baseline untrained")


def test_a_seed_that_diverged_fails_the_mean_and_leaves_no_spread():
    copies = [(OURS, "copying", trained(results)) for results in ({"accuracy": 0.9}, {}, {"accuracy": 0.8})]
    measure = verdicts.answers(measured(study=study_of(copies)), "copying", "copying")
    assert (measure.value, measure.spread, measure.passed) == (None, None, False)


def test_without_any_training_nothing_that_is_learned_is_passed():
    learned = (THREE, BINDS, "no task rules", "fewer parameters", "no maximum length")
    assert verdicts_of(measured(study=study_of([]))) == dict.fromkeys(REQUIREMENTS, True) | dict.fromkeys(learned)


def test_what_is_not_measured_is_never_passed():
    good, bad, told = Measure("a", 1.0, "<= 1", True), Measure("b", 2.0, "<= 1", False), Measure("c", 3.0)
    missing = Measure.at_most("d", None, 1)
    assert missing.passed is None
    assert Finding("r", "", (good, told)).passed is True
    assert Finding("r", "", (good, missing)).passed is None
    assert Finding("r", "", (bad, missing)).passed is False
    assert Finding("r", "", (told,)).passed is None
    assert Measure.below("e", 1.0, 1.0).passed is False
    assert Measure.at_most("e", float("nan"), 1.0) == Measure("e", None, "<= 1", False)


# Tables and files -----------------------------------------------------------------------------------------------------


def card(name="Ours", relatives="Nearest relatives: none [1].", **changes):
    return Scorecard(name, verdicts.findings(measured(**changes)), relatives, {"seeds": [1]})


def printed(*parts):
    console = Console(width=100, file=io.StringIO())
    for part in parts:
        console.print(part, highlight=False)
    return console.file.getvalue().splitlines()


def test_a_scorecard_survives_json():
    one = card(tasks={"char_text": trained(text(float("nan")))})
    assert Scorecard.of(json.loads(json.dumps(one.plain(), allow_nan=False))) == one
    assert one.plain()["passed"]["as good on the three tasks"] is False


def test_the_table_has_a_line_for_each_measure_in_100_columns():
    one = card(costs=replace(COSTS, seq_lens=(4096, 16_384)), **FAILURES["does not recall"][0])
    lines = printed(*renderables(one))
    for finding in one.findings:
        for measure in finding.measures:
            (line,) = [line for line in lines if f"    {measure.name} " in line]
            assert measure.bar in line
    assert "does not recall" in "".join(lines)
    assert lines[-1] == "Nearest relatives: none [1]."
    assert "Ours names no nearest relatives" in printed(*renderables(card(relatives="")))[-1]


def test_the_table_of_all_models_fits_100_columns_and_markdown_agrees():
    cards = [card(name) for name in names.model_names()]
    cards[1] = card(cards[1].model, probed=(LOOP, PROBED))
    lines = printed(summary_table(cards))
    assert all(one.model in lines[1] for one in cards)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary_markdown(cards).splitlines()]
    assert rows[0] == ["requirement", *(one.model for one in cards)]
    assert [row[0] for row in rows[2:]] == list(REQUIREMENTS)
    assert [row[2].split(",")[0] == "**fail**" for row in rows[2:]] == [row[0] == REQUIREMENTS[1] for row in rows[2:]]
    assert all(row[1].startswith("pass, ") for row in rows[2:])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0"), (1.0, "1"), (0.5, "0.500"), (0.00123, "0.0012"), (-1e-9, "0.0000"), (123456.0, "123,456")],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_events_are_replaced_whole(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        write_events(tmp_path, card(probed=(PAIRS, PROBED)))
        (file,) = tmp_path.iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) == {tag for tag, _ in card().scalars()}
    scalar = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert scalar["scorecard/not_an_existing_method/passed"] == 0
    assert scalar["scorecard/as_good_on_the_three_tasks/char_LM_bits_per_character"] == pytest.approx(2.2)
    assert "scorecard/table/text_summary" in events.Tags()["tensors"]


# The command line -----------------------------------------------------------------------------------------------------


def test_choices_of_options_are_what_there_is():
    assert get_args(Task) == TASKS
    assert get_args(BudgetName) == tuple(measuring.BUDGETS)


def test_options_of_groups_are_told_from_others():
    args = ["--model", "X", "--model.a", "-1", "--out", "o", "--optim.b=2", "--other.c", "3", "--model.d"]
    others, groups = split_groups(args, ("model", "optim"))
    assert others == ["--model", "X", "--out", "o", "--other.c", "3"]
    assert groups == {"model": ("--model.a", "-1", "--model.d"), "optim": ("--optim.b=2",)}


@pytest.fixture
def tiny(monkeypatch, tmp_path, tiny_text):
    """Options of a run of seconds, of two models as if there were no others, in an empty folder."""
    monkeypatch.setitem(measuring.BUDGETS, "quick", TINY)
    monkeypatch.setattr(names, "model_names", lambda: ("Palm", "TokenFormer"))
    monkeypatch.chdir(tmp_path)
    return ["--corpus", str(tiny_text.with_name("long.txt")), "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def long_text(tiny_text):
    """A text that is long enough to test on windows of 1,024 characters."""
    path = tiny_text.with_name("long.txt")
    path.write_text(tiny_text.read_text(encoding="utf-8") * 3, encoding="utf-8")


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that are done at once, with the same results for all; the names of those that were asked for."""
    asked = []

    def execute(study, runs, *_):
        for run in runs:
            if run.name not in study.records:
                asked.append(run.name)
                task, spec = run.labels["task"], run.labels["spec"]
                results = RESULTS[task] | ({} if task != "char_text" else text(2.2))
                study.records[run.name] = trained(results, Spec(spec["model"], spec["options"], Optim(**spec["optim"])))
        return []

    monkeypatch.setattr(processes, "execute", execute)
    return asked


def card_in(file):
    return Scorecard.of(json.loads(file.read_text(encoding="utf-8")))


def files_in(folder):
    return sorted(str(path.relative_to(folder)).partition(".tfevents")[0] for path in folder.rglob("[!.]*.*"))


CARD_FILES = ["events.out", "scorecard.json", "scorecard.md"]


def test_all_models_are_measured_and_the_baseline_once(tiny, trainings, tmp_path):
    assert main(["scorecard", *tiny]) == 0
    assert len(trainings) == len(set(trainings)) == 4 * 3
    folder = tmp_path / "runs/scorecard"
    assert files_in(folder) == sorted(
        [f"{name}/{file}" for name in ("Palm", "TokenFormer") for file in CARD_FILES]
        + ["scorecard.json", "scorecard.md", "study.json"]
    )
    content = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
    cards = [Scorecard.of(plain) for plain in content["cards"]]
    assert (folder / "scorecard.md").read_text(encoding="utf-8") == summary_markdown(cards)
    assert (folder / "Palm/scorecard.md").read_text(encoding="utf-8") == card_markdown(cards[0])
    for one in cards:
        assert tuple(finding.requirement for finding in one.findings) == REQUIREMENTS
        assert one.about["baselines"]["recall"]["options"]["d_model"] == 128
        assert len(one.about["trainings"]) == 8
        assert {run["name"] for run in one.about["trainings"]} <= set(trainings)
    palm, tokenformer = ({f.requirement: f.passed for f in one.findings} for one in cards)
    assert palm["not an existing method"] is palm["no task rules"] is True
    assert tokenformer["not an existing method"] is False


def test_options_reach_the_candidate_and_what_is_left_out_stays_open(tiny, trainings, tmp_path):
    options = ["--model.d_model", "16", "--model.num_heads=2", "--optim.learning_rate", "1e-3", "--seeds", "2"]
    assert main(["scorecard", "--model", "Palm", *options, "--tasks", "copying", "--out", "here", *tiny]) == 0
    one = card_in(tmp_path / "here/Palm/scorecard.json")
    assert one.about["candidate"]["options"]["d_model"] == one.about["baselines"]["copying"]["options"]["d_model"] == 16
    assert one.about["candidate"]["optim"]["learning_rate"] == 1e-3
    assert one.about["seeds"] == [1, 2]
    assert {run["labels"]["task"] for run in one.about["trainings"]} == {"copying", "binding"}
    assert len(trainings) == 8
    measures = {measure.name: measure for finding in one.findings for measure in finding.measures}
    assert measures["char LM, bits per character"].passed is None
    assert measures["recall, accuracy"].value is None
    assert measures["copying, accuracy (lengths 64 to 1,024)"].spread is not None


def test_an_interrupted_run_leaves_whole_scorecards_alone(tiny, trainings, tmp_path, monkeypatch, capsys):
    measure_costs = measuring.measure_costs

    def interrupted(model, *args):
        if type(model).__name__ == "TokenFormer":
            raise KeyboardInterrupt
        return measure_costs(model, *args)

    monkeypatch.setattr(measuring, "measure_costs", interrupted)
    assert main(["scorecard", "--tasks", "copying", *tiny]) == 130
    assert files_in(tmp_path / "runs/scorecard") == [*(f"Palm/{file}" for file in CARD_FILES), "study.json"]
    assert capsys.readouterr().err == ""


def test_trainings_are_fits_of_a_study_that_are_done_once(tiny, tmp_path, monkeypatch, capsys):
    """With a candidate that is its own baseline in two tasks, so that there are no more than six."""
    monkeypatch.setattr(names, "model_names", lambda: ("Transformer",))
    options = ["d_model=16", "num_heads=1", "positions=none", "local_mixing=conv", "tie_embeddings=true"]
    line = ["scorecard", "--model", "Transformer", *(f"--model.{option}" for option in options), *tiny]
    assert main([*line, "--print_commands"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 6
    assert all(" fit --model=Transformer " in command and " && " in command for command in commands)
    assert main(line) == 0
    study = read_study(tmp_path / "runs/scorecard/study.json")
    assert len(study.records) == 6
    assert study.findings["passed"]["Transformer"][THREE] is False
    for run in study.plan:
        record = read_record(tmp_path / "runs/scorecard" / run.name / "record.json")
        assert compact(record) == study.records[run.name]
        assert (record["status"], record["seed"], record["max_steps"]) == ("finished", 1, 2)
    card_file = tmp_path / "runs/scorecard/Transformer/scorecard.json"
    ours = {finding.requirement: finding.measures for finding in card_in(card_file).findings}
    for measure in (ours[THREE][1], *ours[BINDS]):  # recall and binding
        assert measure.value is not None
        assert measure.value == measure.baseline
    capsys.readouterr()
    assert main([*line, "--print_commands"]) == 0
    assert capsys.readouterr().out.strip() == ""


MISTAKES = {
    "--model Plam": ("--model Plam", "'Palm'", "TokenFormer, all"),
    "--budget quik": ("--budget quik", "'quick', 'full'"),
    "--tasks copyng": ("--tasks copyng", "'copying', 'recall', 'char_text'"),
    "--tasks [copying,text]": ("--tasks text", "'char_text'"),
    "--tasks []": ("--tasks is empty",),
    "--model.d_model 64": ("--model.d_model is for one model",),
    "--model Palm --model.rnk 3": ("--model.rnk", "'--model.rank'"),
    "--model Palm --model.rank abc": ("--model.rank abc", "int"),
    "--model Palm --model.d_model 24": ("--model.d_model 24", "--model.num_heads 8"),
    "--model Palm --model.vocab_size 3": ("--model.vocab_size", "task"),
    "--optim.lr 3": ("--optim.lr", "'--optim.learning_rate'"),
    "--optim.learning_rate -1": ("--optim.learning_rate is -1",),
    "--corpus none.txt": ("--corpus none.txt", "neither a file"),
    "--corpus short.txt": ("--corpus short.txt is too short", "1024"),
    "--seed -1": ("--seed -1",),
    "--seeds 0": ("--seeds is 0",),
    "--workers 0": ("--workers is 0",),
    "--threads 0": ("--threads is 0",),
    "--out short.txt/here": ("--out short.txt/here", "short.txt is no folder"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_before_anything_is_measured(tiny, line, tmp_path, capsys):
    Path("short.txt").write_text("too short\n" * 9, encoding="utf-8")
    assert main(["scorecard", *tiny, *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" or re.fullmatch(r"scorecard: .*\n", out)  # what it does is said before it is tried
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for words in MISTAKES[line]:
        assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
