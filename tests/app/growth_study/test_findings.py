"""What a growth study computes from its runs, against curves whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.growth_study.findings import compute_saved, falling, flops_for, recipe_outcomes
from app.growth_study.plan import stage_steps
from app.growth_study.report import answer, headline
from app.output.intervals import t_interval, t_quantile
from app.study.study import Planned, Study

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
    """A run of 1e12 FLOPs that ends where training from scratch ends with `equal_to` of them."""
    losses_SF = loss(BUDGETS) + np.array([[-0.01], [0.0], [0.01]])  # seeds differ, in both alike
    found = compute_saved(1e12, loss(equal_to * 1e12) + np.array([-0.01, 0.0, 0.01]), BUDGETS, losses_SF)
    assert found.interval.value == pytest.approx(saved)
    assert found.interval.low == pytest.approx(saved)
    assert found.interval.high == pytest.approx(saved)


def test_beyond_the_curve_there_is_a_bound():
    losses_SF = loss(BUDGETS)[None]
    better, worse = (compute_saved(1e12, np.array([value]), BUDGETS, losses_SF) for value in (1.0, 9.0))
    assert better.interval.value == pytest.approx(better.most) == pytest.approx(1 - 1 / 1.4)
    assert worse.interval.value == pytest.approx(worse.least) == pytest.approx(1 - 1 / 0.5)


def test_students_interval():
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert t_interval([1.0]).low is None
    assert t_quantile(30) == pytest.approx(2.04227, abs=1e-4)
    assert t_quantile(11) == pytest.approx(2.20099, abs=1e-4)


@given(st.lists(st.tuples(st.floats(1, 50), st.floats(0.05, 1)), min_size=1, max_size=5), st.integers(200, 5000))
def test_all_stages_together_cost_the_budget(stages, steps):
    flops = np.cumsum([each for each, _ in stages])  # sizes rise
    shares = np.array([share for _, share in stages])
    numbers = stage_steps(list(flops), list(shares / shares.sum()), steps * float(flops[-1]))
    assert abs(np.dot(numbers, flops) - steps * flops[-1]) <= flops[-1] / 2 * (1 + 1e-9)


def study(exact, scratch=0.0, **events):
    """Three seeds whose exact recipe ends `exact` above training from scratch."""
    plan, records = [], {}
    kinds = [("scratch", budget) for budget in (0.5, 0.7, 1.0, 1.4)] + [("exact", 1.0)]
    for seed in (1, 2, 3):
        for recipe, budget in kinds:
            name = f"{recipe}-{budget}-{seed}"
            labels = {"corpus": "words", "recipe": recipe, "budget": budget, "seed": seed}
            plan.append(Planned(name, labels | {"stages": [10], "parameters": [100]}, []))
            value = loss(budget * 1e12) + (exact + 0.001 * seed if recipe == "exact" else scratch)
            jumps = [{"bits_per_char_before": 2.0, "bits_per_char_after": 2.0, **events}] if recipe == "exact" else []
            records[name] = {
                "flops": budget * 1e12, "seconds": 1.0, "status": "finished", "growth_events": jumps,
                "test": {"test/bits_per_char": float(value)},
            }  # fmt: skip
    return Study("growth-study", "", {}, plan, records)


@pytest.mark.parametrize(("exact", "verdict", "says"), [
    (0.03, "worse", "does not pay here"), (-0.03, "better", "can pay"), (-0.002, "undecided", "is not decided"),
])  # fmt: skip
def test_the_answer_is_what_the_runs_say(exact, verdict, says):
    found = recipe_outcomes(study(exact))
    assert [f.verdict for f in found if f.recipe == "exact"] == [verdict]
    assert says in headline(found, "a plant")
    assert "1 comparisons" in headline(found, "a plant")
    assert f"{exact + 0.002:+.3f}" in answer("words", found)


def test_the_largest_jump_is_told():
    (exact,) = [f for f in recipe_outcomes(study(0.0, bits_per_char_after=2.25)) if f.recipe == "exact"]
    assert exact.jump == 0.25


def test_a_run_that_diverged_counts_in_nothing_else():
    broken = study(0.03)
    del broken.records["exact-1.0-2"]["test"]
    (exact,) = [f for f in recipe_outcomes(broken) if f.recipe == "exact"]
    assert (exact.seeds, exact.diverged) == ([1, 3], 1)
