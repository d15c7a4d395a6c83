"""What a comparison shows of runs that are made up: who is untrained, better, worse, and what it took to .9."""

import pytest

from app.compare.findings import chosen_runs, comparison_rows
from app.compare.learning import COSTS, Reach, at_equal, cost_to, reach, value_at
from app.compare.report import comparison_markdown, in_words, learning_table
from app.report.sections import sections
from app.study.study import Planned, Study

CHANCE = {"accuracy": 1 / 30}
SEARCH = {"trials": 12, "learned": True, "widenings": 1, "span": [0.1, 100.0], "edge": "", "ends": []}


def record(accuracy, *, until=100, history=None, **changes):
    """A finished run that learns evenly, validated ten times."""
    points = [(step, accuracy * step / until) for step in range(10, until + 1, 10)] if history is None else history
    spent = [{"step": n, "tokens": n, "flops": 2.0 * n, "seconds": n / 10, "parameters": 5} for n, _ in points]
    history = [
        of | {"val/loss": 1 - value, "val/accuracy": value} for of, (_, value) in zip(spent, points, strict=True)
    ]
    return {
        "status": "finished", "chance": CHANCE, "history": history, "final": history[-1], **spent[-1],
        "test": {"test/accuracy": accuracy, "test/accuracy/64": accuracy},
    } | changes  # fmt: skip


def study_of(**models):
    """A study in which each model has these accuracies, a seed each."""
    study = Study("compare", "python -m app compare", {}, [])
    for model, accuracies in models.items():
        of = {"task": "copying", "model": model, "d_model": 64, "budget": 100.0, "unit": "tokens"}
        about = {"trial": 4, "factor": 2.0, "configuration": {"recipe": "xlstm"}}
        study.plan.append(Planned(f"{model}-t4", of | about | {"seed": 0, "rung": 1}, [], test=False))
        study.records[f"{model}-t4"] = record(0.99)
        for seed, accuracy in enumerate(accuracies, start=1):
            study.plan.append(Planned(f"{model}-{seed}", of | about | {"seed": seed, "search": SEARCH}, []))
            study.records[f"{model}-{seed}"] = accuracy if isinstance(accuracy, dict) else record(accuracy)
    return study


def test_models_are_better_worse_undecided_or_untrained():
    study = study_of(
        Transformer=[0.50, 0.52, 0.54], Palm=[0.9, 0.92, 0.94], PotatoLM=[0.3, 0.31, 0.32], TokenFormer=[0.4, 0.5, 0.6],
        SparseRNN=[0.03, 0.034, 0.04],
    )  # fmt: skip
    base, better, worse, undecided, untrained = comparison_rows(study)
    assert [row.verdict for row in comparison_rows(study)] == ["learned", "better", "worse", "undecided", "untrained"]
    assert (base.difference, untrained.difference, untrained.p) == (None, None, None)
    for row, others in ((better, 3), (worse, 2), (undecided, 1)):  # by steps down
        assert row.p == pytest.approx(others * row.difference.p)
    assert "Differences tested in this table: 3." in comparison_markdown(study, comparison_rows(study))
    assert "| 12 | 2 | recipe xlstm | learning rates widened to 0.1 .. 100 |" in comparison_markdown(
        study, comparison_rows(study)
    )


def test_models_are_compared_at_equal_numbers_of_layers():
    study = study_of(Transformer=[0.5, 0.52], Palm=[0.9, 0.92])
    for depth, shift in ((2, 0.0), (4, 0.05)):
        for run in list(study.plan[:6]):
            accuracy = study.records[run.name]["test"]["test/accuracy"] + shift
            study.plan.append(Planned(f"{run.name}-l{depth}", run.labels | {"num_layers": depth}, [], test=run.test))
            study.records[f"{run.name}-l{depth}"] = record(accuracy)
    rows = comparison_rows(Study("compare", "", {}, study.plan[6:], study.records))
    assert [(row.model, row.num_layers) for row in rows] == [(m, d) for d in (2, 4) for m in ("Transformer", "Palm")]
    assert all(row.difference.value == pytest.approx(0.4) for row in rows if row.model == "Palm")
    report = comparison_markdown(study, rows)
    assert "## copying, width 64, layers 2, 100 tokens" in report
    assert "## copying, width 64, layers 4, 100 tokens" in report


def test_runs_of_the_search_count_nowhere():
    study = study_of(Transformer=[0.5, 0.6])
    (row,) = comparison_rows(study)
    assert row.runs == chosen_runs(study) == ["Transformer-1", "Transformer-2"]
    assert row.values == {"": [0.5, 0.6], "64": [0.5, 0.6]}


def test_with_an_untrained_baseline_nobody_wins():
    base, other = comparison_rows(study_of(Transformer=[0.03, 0.03], Palm=[1.0, 1.0]))
    assert (base.verdict, other.verdict, other.difference) == ("untrained", "learned", None)


def test_a_run_that_diverged_counts_in_nothing_else():
    lost = record(0.5, status="failed: the loss is not finite", test={})
    (row,) = comparison_rows(study_of(Transformer=[0.5, lost, 0.03]))
    assert (row.diverged, row.seeds, row.learned) == (1, [1, 3], 1)


# Learning -------------------------------------------------------------------------------------------------------------


def test_curves_are_straight_between_validations():
    points = [(10, 0.2), (20, 0.8), (30, 0.7), (40, 1.0)]
    assert cost_to(points, 0.5) == pytest.approx(15)
    assert cost_to(points, 0.75) == pytest.approx(20 - 10 / 12)
    assert cost_to(points) == pytest.approx(30 + 20 / 3)
    assert cost_to(points, 0.1) == 10  # at most
    assert cost_to(points[:3]) is None
    assert [value_at(points, place) for place in (5, 10, 25, 40, 41)] == [None, 0.2, pytest.approx(0.75), 1.0, None]


@pytest.mark.parametrize(("costs", "slow", "text"), [
    ([50.0, 60.0, 70.0], None, "60 [50 .. 70]"),
    ([50.0, None, 70.0], None, "70 [50 .. 70], 2 of 3 seeds"),
    ([None, None, 70.0], 10.0, "not by 100, 1 of 3 seeds"),
    ([None, None, None], 40.0, "not by 100 (2.5 x the slowest)"),
    ([None, None, None], 20.0, "not by 100"),
])  # fmt: skip
def test_who_did_not_get_there_is_told_with_until_when(costs, slow, text):
    assert in_words(Reach(costs, [100.0, 110.0, 120.0]), "tokens", slow) == text


def test_models_are_compared_at_the_greatest_cost_that_all_had():
    study = study_of(Transformer=[record(1.0), record(0.8)], Palm=[record(0.5, until=50), record(0.4, until=80)])
    rows = comparison_rows(study)
    equal = at_equal(study, rows, "tokens")
    assert equal.place == 50
    assert equal.values == [pytest.approx([0.5, 0.4]), pytest.approx([0.5, 0.25])]
    assert reach(study, rows[0], "flops").costs == [pytest.approx(180), None]
    table = learning_table(study, rows)
    assert "accuracy at 50 tokens | accuracy at 100 FLOPs | accuracy at 5 seconds | tokens to .9 |" in table
    assert [len(line.split("|")) for line in table.splitlines()] == [9] * 4
    assert len(COSTS) == 3


def test_a_report_has_a_table_and_a_figure_for_each_budget():
    study = study_of(Transformer=[0.5, 0.6], Palm=[0.9, 0.8])
    for run in list(study.plan):
        name = f"{run.name}-more"
        study.plan.append(Planned(name, run.labels | {"budget": 200.0}, []))
        study.records[name] = study.records[run.name]
    for made in study.records.values():
        made |= {"device": "cpu", "versions": {"torch": "2"}, "precision": "32", "growth_events": []}
    (section,) = sections("study", study)
    assert sorted(section.figures) == ["study-copying-64-100.png", "study-copying-64-200.png"]
    titles = [text for text in section.paragraphs if text.startswith("###")]
    assert titles == ["### copying, width 64, 100 tokens", "### copying, width 64, 200 tokens"]
