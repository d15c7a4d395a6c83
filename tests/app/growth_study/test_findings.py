"""What a growth study says of runs whose answer is known: a law gives their losses, see `toys`."""

import json
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.growth_study.arms import FAMILY, OF_RECIPES, SHARES, SIZES
from app.growth_study.curves import compute_saved, falling, flops_for
from app.growth_study.figures import by_share, by_size, figures, least_by, saved_percent
from app.growth_study.findings import best_size, family_of, measured_runs, table_rows
from app.growth_study.recipes import GROWN
from app.growth_study.report import growth_markdown, headline, runs_csv
from app.output.intervals import Interval, holm, t_interval, t_quantile, welch_difference
from tests.app.growth_study.toys import gain, study

BUDGETS = np.array([0.5, 0.7, 1.0, 1.4]) * 1e12


def loss(flops):
    """A curve that is straight in log FLOPs, as between two points of a study."""
    return 3 - 0.2 * np.log(flops / 1e12)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_the_nearest_falling_sequence_meets_the_conditions_of_a_projection(values):
    losses = np.array(values)
    nearest = falling(losses)
    assert (np.diff(nearest) <= 1e-12).all()
    np.testing.assert_allclose(falling(nearest), nearest)
    residual = losses - nearest
    assert residual.sum() == pytest.approx(0, abs=1e-9)  # moving all of it gains nothing
    assert residual @ nearest == pytest.approx(0, abs=1e-7)
    assert (np.cumsum(residual) <= 1e-9).all()  # and neither does raising its beginning


@given(st.floats(0.51, 1.39))
def test_flops_for_a_loss_are_read_off_the_curve(budget):
    assert flops_for(loss(budget * 1e12), BUDGETS, loss(BUDGETS)) == pytest.approx(budget * 1e12)


@pytest.mark.parametrize(("equal_to", "saved"), [(1.25, 0.2), (0.8, -0.25), (1.0, 0.0)])
def test_compute_saved_is_that_of_the_budget_with_the_same_loss(equal_to, saved):
    """A run of 1e12 FLOPs that ends where training from scratch ends with `equal_to` of them; and one half as dear."""
    value = loss(equal_to * 1e12) - 3
    difference = Interval(value, value - 0.01, value + 0.01)
    found = compute_saved(1e12, difference, BUDGETS, loss(BUDGETS) - 3)
    assert found.interval.value == pytest.approx(saved)
    assert found.interval.low == pytest.approx(1 - 1 / (equal_to * math.exp(-0.05)))  # .01 are 5 % of the FLOPs
    assert found.interval.high == pytest.approx(1 - 1 / (equal_to * math.exp(0.05)))
    assert compute_saved(5e11, difference, BUDGETS, loss(BUDGETS) - 3).interval.value == pytest.approx((1 + saved) / 2)
    assert compute_saved(1e12, Interval(value), BUDGETS, loss(BUDGETS) - 3).interval.low is None


def test_beyond_the_curve_there_is_a_bound():
    better, worse = (compute_saved(1e12, Interval(value), BUDGETS, loss(BUDGETS) - 3) for value in (-2.0, 6.0))
    assert better.interval.value == pytest.approx(better.most) == pytest.approx(1 - 1 / 1.4)
    assert worse.interval.value == pytest.approx(worse.least) == pytest.approx(1 - 1 / 0.5)
    assert [found.bound(found.interval.value) for found in (better, worse)] == [">=", "<="]
    assert better.bound(0.0) == ""


def test_students_interval():
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert t_interval([1.0]).low is None
    assert t_quantile(30) == pytest.approx(2.04227, abs=1e-4)
    assert t_quantile(11) == pytest.approx(2.20099, abs=1e-4)


# The toy study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return study()


@pytest.fixture(scope="module")
def rows(toy):
    return table_rows(toy)


def grown(rows):
    return {row.size: row for row in rows if (row.question, row.recipe) == (SIZES, GROWN)}


def test_each_size_is_compared_with_scratch_at_its_own_best_rate(toy, rows):
    """Differences are those of the law, intervals Welch's, p values corrected for the five tests of the question."""
    found = grown(rows)
    scratch = {row.size: row for row in rows if row.question == SIZES and row.is_scratch}
    assert [row.verdict for row in found.values()] == ["undecided", "better", "better", "better", "worse"]
    for size, row in found.items():
        (run,) = toy.runs(arm=row.arm, seed=1)
        assert row.difference == welch_difference(row.losses, scratch[size].losses)
        assert row.difference.value == pytest.approx(-gain(run), abs=0.02)
        assert (row.factor, row.search["rates"], row.search["edge"], row.seeds) == (2.0, 5, "", [1, 2, 3, 4])
    corrected = holm([row.difference.p for row in found.values()])
    assert [row.p for row in found.values()] == pytest.approx(corrected)


def test_compute_saved_is_what_the_law_says(rows):
    """A gain g is worth a factor exp(g / .2) of FLOPs; with the base sunk, only what comes after the growth counts."""
    row = grown(rows)[2.0, 1]
    assert row.saved.interval.value == pytest.approx(1 - math.exp(row.difference.value / 0.2), abs=0.03)
    after = row.after / row.flops
    assert after == pytest.approx(0.9, abs=0.01)
    assert row.sunk.interval.value == pytest.approx(1 - after * (1 - row.saved.interval.value))
    assert grown(rows)[8.0, 1].saved.bound(grown(rows)[8.0, 1].saved.interval.value) == ">="
    assert grown(rows)[8.0, 1].after / row.flops == pytest.approx(0.85, abs=0.01)  # behind the chain's first size


def test_the_answer_is_a_curve_over_the_compute_optimal_size(rows):
    assert (best_size(rows, deep=False).tokens, best_size(rows, deep=True).depth) == (2.0, 1)
    assert [x for x, _ in by_size(rows, deep=False)] == [0.5, 1, 2, 4]
    assert [x for x, _ in by_size(rows, deep=True)] == [2]
    assert [x for x, _ in by_share(rows, deep=False)] == pytest.approx([5, 10, 40])
    assert saved_percent(grown(rows)[2.0, 1]).value == 100 * grown(rows)[2.0, 1].saved.interval.value


def test_other_recipes_are_compared_with_the_main_one_too(rows):
    others = {row.recipe: row for row in rows if row.question == OF_RECIPES}
    zero = others["zero_keys"]
    assert zero.rival == welch_difference(zero.losses, grown(rows)[1.0, 1].losses)
    assert (len(zero.seeds), len(others["published"].seeds)) == (4, 3)
    assert (zero.search["of"], others["published"].search["of"]) == ("tokens1-zero_keys", "tokens1-grown")
    assert (others["once"].size, others["exact_layers"].size) == ((8.0, 1), (1.0, 2))
    assert all(row.rival_p is not None for row in others.values())


def test_the_family_pays_for_what_its_branches_have_beyond_the_chain(toy, rows):
    family = family_of(rows)
    assert [row.tokens for row in family.members] == [1, 2, 4, 8]
    assert family.partners[0] is family.members[0]  # which does not grow
    assert all(
        (theirs.size, theirs.budget) == (ours.size, ours.budget)
        for ours, theirs in zip(family.members, family.partners, strict=True)
    )
    beyond = sum(row.flops - row.shared for row in family.members[:-1])
    assert family.chain == pytest.approx(family.members[-1].flops + beyond)
    assert family.scratch == pytest.approx(sum(row.flops for row in family.members), rel=0.01)
    lows = [row.flops / (1 - row.saved.interval.low) for row in family.members[1:]]
    assert family.at_loss.low == pytest.approx(family.members[0].flops + sum(lows))
    del toy.records[family.members[0].runs[0]]
    assert family_of(table_rows(toy)) is not None  # two seeds are left


def test_any_time_is_the_least_loss_so_far(toy, rows):
    (row,) = [row for row in rows if row.arm == "tokens8-grown"]
    losses = [toy.records[name]["history"][9]["val/bits_per_char"] for name in row.runs]  # the half of it
    before, half = least_by(toy, row, [0.01 * row.flops, 0.5 * row.flops])
    assert before is None
    assert half == pytest.approx(fmean(losses))


def test_the_report_tells_all_of_it_and_is_json(toy, rows):
    text = growth_markdown(toy, rows, ["growth_study.png"])
    assert "undecided at 1 x; growing layers ends worse at 2 x" in headline(rows, "a plant")
    assert "better at 2 x, 4 x, 8 x" in headline(rows, "a plant")
    assert "Parameter tokens (compute-optimal: 2 x):" in text
    assert "Layers (compute-optimal: 1 x, the smallest tried):" in text
    assert "The chain gives 4 sizes for" in text
    for title in ("By final size", "By when it grows", "By recipe", "The whole family of sizes", "At any time"):
        assert f"\n## {title}" in text
    assert json.loads(json.dumps([row.plain() for row in rows]))[0]["arm"] == "tokens0.5-scratch"
    assert len(runs_csv(toy).splitlines()) == 1 + len(toy.runs())
    assert set(figures("growth", toy, rows)) == {"growth.png", "growth-flops.png"}
    assert set(measured_runs(toy)) == {run.name for run in toy.runs() if "rung" not in run.labels}


def test_without_other_budgets_only_differences_are_told():
    plain = study(scratch_budgets=[], depths=[], shares=[0.1], recipes=[], chain_shares=[])
    rows = table_rows(plain)
    assert {row.question for row in rows} == {SIZES}
    assert all(row.saved is None for row in rows)
    assert family_of(rows) is None
    assert "better at 2 x" in growth_markdown(plain, rows, [])
    assert figures("growth", plain, rows).keys() == {"growth.png", "growth-flops.png"}


def test_growth_that_gives_nothing_is_not_called_better_or_worse():
    rows = table_rows(study(gained=lambda run: 0.0))
    verdicts = [row.verdict for row in rows if row.question in (SIZES, SHARES, FAMILY) and row.grows]
    assert set(verdicts) == {"undecided"}


def test_a_run_that_diverged_counts_in_nothing_else(toy):
    broken = study()
    broken.records["tokens1-grown-s2"]["test"] = {}
    broken.records["tokens1-grown-s2"]["status"] = "failed: loss is not finite"
    (row,) = [row for row in table_rows(broken) if row.arm == "tokens1-grown"]
    assert (row.seeds, row.diverged) == ([1, 3, 4], 1)
    assert "1 diverged" in growth_markdown(broken, table_rows(broken), [])
    assert "tokens1-grown-s2" not in measured_runs(broken)


def test_an_empty_study_knows_nothing():
    empty = study()
    empty.records.clear()
    assert table_rows(empty) == []
    assert "is not known" in headline([], "a plant")


def test_the_largest_jump_is_told():
    jumped = study()
    jumped.records["tokens8-grown-s1"]["growth_events"][1]["bits_per_char_after"] = 2.75
    (row,) = [row for row in table_rows(jumped) if row.arm == "tokens8-grown"]
    assert row.jump == 0.25
