"""Which learning rate was best, and at which end of those tried: for studies of every kind."""

import pytest

from app.study.gather import RATE_AT_END, RATES, with_rates
from app.study.rates import at_chosen_rate, rates_of
from app.study.study import Planned, Study


def study_of(*runs):
    """Runs of these labels and validation losses; None for one that diverged."""
    study = Study("compare", "", {}, [])
    for number, (labels, loss) in enumerate(runs):
        study.plan.append(Planned(f"r{number}", labels, []))
        study.records[f"r{number}"] = {
            "status": "failed: loss not finite" if loss is None else "finished", "final": {"val/loss": loss},
        }  # fmt: skip
    return study


@pytest.mark.parametrize(("losses", "best", "edge"), [
    ({1: 2.0, 0.5: 3.0, 2: 2.5}, 1, ""), ({1: 2.0, 0.5: 1.5, 2: 2.5}, 0.5, "low"), ({1: 2.0, 2: 1.5}, 2, "high"),
    ({1: 2.0}, 1, ""), ({1: 2.0, 2: None, 4: None}, 1, "low"), ({1: None, 2: None}, None, ""),
    ({1: float("nan"), 2: 3.0, 4: 4.0}, 2, ""),
])  # fmt: skip
def test_the_best_rate_has_the_least_loss_and_may_stand_at_an_end(losses, best, edge):
    rates = rates_of(study_of(*(({"factor": factor}, loss) for factor, loss in losses.items())).runs())
    assert (rates.tried, rates.best, rates.edge) == (sorted(losses), best, edge)


def test_an_older_study_has_the_rate_that_its_first_seed_chose():
    tried = [({"seed": 1, "factor": factor}, loss) for factor, loss in ((0.5, 3.0), (1, 2.0), (2, 2.5))]
    study = study_of(*tried, ({"seed": 2, "factor": 1}, 2.2))
    assert [run.name for run in at_chosen_rate(study.runs())] == ["r1", "r3"]
    labels = [run.labels for run in with_rates(study, ["r1", "r3"])]
    assert [(label[RATES], label[RATE_AT_END]) for label in labels] == [(3, False)] * 2


def test_a_rate_that_was_chosen_apart_says_how():
    of_size = {"tokens": 2.0, "factor": 4.0}
    study = study_of(
        (of_size | {"seed": 0, "rung": 1}, 2.0), (of_size | {"seed": 1, "search": {"rates": 5, "edge": "high"}}, 2.1)
    )
    (run,) = with_rates(study, ["r1"])
    assert (run.labels[RATES], run.labels[RATE_AT_END]) == (5, True)
