"""The search: its space, its trials, its rungs on toys whose best is known, and what may not choose."""

import math
from pathlib import Path

import pytest

from app.compare.configurations import experiment, model_options, recipe, shortened
from app.compare.grid import Size
from app.compare.outcomes import has_learned, result
from app.compare.search import Result, num_runs, search, shares
from app.compare.space import OWN, Space, Trial, point, read_space
from models import Palm, SparseRNN, TrajectoryLM, Transformer
from models.optim import Optim

CONFIGS = Path(__file__).resolve().parents[3] / "app" / "configs"
SPACE = read_space(CONFIGS / "search.yaml")


# A toy, of which the best is known ------------------------------------------------------------------------------------


def toy(best_factor, heads=4):
    """A loss with one least point, which a third of the budget sees through noise that its trial's number decides."""

    def results(trial, share):
        has = trial.plain()
        loss = math.log10(trial.factor / best_factor) ** 2 + 0.3 * (has.get("num_heads", 1) != heads)
        loss += 0.0 if has.get("recipe", OWN) == "nanochat" else 0.2
        return Result(True, loss + 0.05 * (1 - share) * math.sin(trial.number))

    return results


def searched(results, number=27, model=Transformer, **options):
    trials = [SPACE.trial(n, model) for n in range(number)]
    return search(trials, SPACE.learning_rate, shares(number), results, **options)


def test_a_best_inside_of_the_space_is_found():
    found = searched(toy(1.5), 54)
    assert found.ended
    assert (found.widenings, found.edge) == (0, "")
    assert 0.5 < found.chosen.factor < 4.5
    assert found.chosen.plain()["num_heads"] == 4
    assert found.chosen.recipe == "nanochat"


@pytest.mark.parametrize(("best", "span", "edge"), [
    (30.0, (0.1, 100.0), ""), (5e-3, (1e-3, 10.0), ""), (1e9, (0.1, 1000.0), "high"), (1e-9, (1e-3, 10.0), "low"),
])  # fmt: skip
def test_the_range_is_widened_where_the_best_lies_beyond_it_twice_at_most(best, span, edge):
    found = searched(toy(best))
    assert found.ended
    assert found.span == pytest.approx(span)
    assert found.edge == edge
    assert found.widenings == round(math.log10(span[1] / span[0])) - 2
    if not edge:
        assert abs(math.log10(found.chosen.factor / best)) < 0.5
    more = {trial for trial, _ in found.runs if trial.number >= 27}
    assert len(more) == 9 * found.widenings
    assert len({trial.choices for trial in more}) == 1  # of the best
    assert searched(toy(best), widenings=0).span == SPACE.learning_rate


def test_rungs_fall_away_where_trials_are_few():
    assert [shares(number) for number in (1, 2, 3, 8, 9, 30)] == [
        [1], [1], [1 / 3, 1], [1 / 3, 1], [1 / 9, 1 / 3, 1], [1 / 9, 1 / 3, 1],
    ]  # fmt: skip
    assert [num_runs(number) for number in (1, 2, 3, 9, 27)] == [1, 2, 4, 13, 39]
    runs = searched(toy(1.5), 9).runs
    assert [[s for _, s in runs].count(share) for share in shares(9)] == [9, 3, 1]


def test_what_is_not_done_decides_nothing():
    complete = searched(toy(1.5))
    found = searched(lambda trial, share: toy(1.5)(trial, share) if trial.number < 20 else None)
    assert (found.ended, found.chosen) == (False, None)
    assert len(found.runs) == 27
    found = searched(lambda trial, share: toy(1.5)(trial, share) if share < 1 / 3 else None)
    assert found.runs == complete.runs[: len(found.runs)]
    assert len(found.runs) == 36


def test_what_learned_nothing_does_not_choose():
    """By loss alone the trials that learned nothing would win."""
    found = searched(lambda trial, share: Result(trial.number % 4 == 3, float(trial.number % 4)))
    assert all(trial.number % 4 == 3 for trial, share in found.runs if share == 1)
    assert found.chosen.number % 4 == 3
    never = searched(lambda trial, share: Result(False, float(-trial.number)))
    assert (never.chosen, never.ended, len(never.runs)) == (None, True, 3 * 27)  # noise drops none
    slow = searched(lambda trial, share: Result(share == 1 and trial.number == 5, float(-trial.number)))
    assert slow.chosen.number == 5
    assert searched(lambda trial, share: Result(False, math.inf)).runs[27:] == []


# The space ------------------------------------------------------------------------------------------------------------


def test_trials_are_a_sobol_sequence_the_same_for_all_models():
    assert [point(number, 2) for number in range(4)] == [[0, 0], [0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]
    assert SPACE.trial(0, Palm) == Trial()
    for number in range(1, 20):
        ours, theirs = (SPACE.trial(number, model) for model in (Transformer, SparseRNN))
        assert (ours.factor, ours.recipe, ours.weight_decay) == (theirs.factor, theirs.recipe, theirs.weight_decay)
        assert {"variant", "local_mixing", "tie_embeddings"} == theirs.plain().keys() - {"recipe", "weight_decay"}
        assert ours.plain()["local_mixing"] == theirs.plain()["local_mixing"]
    factors = sorted(SPACE.trial(number, Transformer).factor for number in range(1, 65))
    assert 0.1 <= factors[0] < 0.11
    assert 9 < factors[-1] < 10
    assert 0.8 < factors[32] < 1.25
    assert {SPACE.trial(number, Palm).plain()["mixing"] for number in range(1, 9)} == {"detail", "aft"}
    assert "positions" not in SPACE.trial(1, TrajectoryLM).plain()


def test_a_choice_that_a_constructor_refuses_is_left_out():
    presets = CONFIGS / "experiment"
    choices = ((("positions", "none"), ("rope_base", 10000.0)), (("num_heads", 3),), (("local_mixing", "conv"),))
    options = model_options(presets, "copying", "Transformer", Size(0, 0), choices)
    assert options == {"positions": "none", "rope_base": 10000.0, "local_mixing": "conv"}
    assert model_options(presets, "copying", "Transformer", Size(32, 2), ()) == {
        "d_model": 32, "num_heads": 1, "num_layers": 2,
    }  # fmt: skip


def test_a_recipe_is_whole_and_multiplied():
    chosen = experiment(CONFIGS / "experiment", "copying", "TrajectoryLM")
    optim, trainer = recipe(chosen, Trial(1, 2.0, "xlstm", 0.5))
    assert optim == Optim(
        optimizer="adamw", learning_rate=0.012, weight_decay=0.5, beta2=0.95, warmup_steps=100
    )  # fmt: skip
    assert trainer == {}
    optim, _ = recipe(chosen, Trial(1, 0.5))
    assert (optim.matrix_learning_rate, optim.embedding_learning_rate) == (0.015, 0.245)
    assert shortened(Optim(warmup_steps=90), 1 / 9, 100).warmup_steps == 10
    assert shortened(Optim(warmup_steps=90, momentum_warmup_steps=300), 1, 100).momentum_warmup_steps == 20


@pytest.mark.parametrize(("content", "message"), [
    ("{learning_rates: [1, 3]}", "no learning_rates is searched; did you mean 'learning_rate'?"),
    ("{learning_rate: [3, 1]}", "learning_rate [3, 1] must be the least and the greatest multiple"),
    ("{weight_decay: [1, 0]}", "weight_decay [1, 0] must be numbers from 0 on, in ascending order"),
    ("{weight_decay: 1}", "recipes, learning_rate and weight_decay are lists"),
    ("{model: {num_heads: 4}}", "model.num_heads is no list of choices"),
])  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, content, message):
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ValueError, match="--space .*space.yaml") as raised:
        read_space(tmp_path / "space.yaml")
    assert message in str(raised.value)


def test_a_space_may_be_small(tmp_path):
    (tmp_path / "space.yaml").write_text("{learning_rate: [0.3, 3]}")
    space = read_space(tmp_path / "space.yaml")
    assert space == Space([], (0.3, 3.0), [], {})
    assert space.trial(1, Transformer) == Trial(1, 0.949)


# Whether a run learned anything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chance", "final", "learned"), [
    ({"accuracy": 1 / 30}, {"val/accuracy": 0.05}, False),
    ({"accuracy": 1 / 30}, {"val/accuracy": 0.06}, True),
    ({"bits_per_char": 4.0}, {"val/bits_per_char": 3.95, "val/accuracy": 0.2}, False),
    ({"bits_per_char": 4.0}, {"val/bits_per_char": 3.9}, True),
    ({}, {"val/accuracy": 0.0}, None),
])  # fmt: skip
def test_a_run_has_learned_above_chance(chance, final, learned):
    record = {"status": "finished", "chance": chance, "final": final | {"val/loss": 1.0}}
    assert has_learned(record) is learned
    assert result(record) == Result(learned is not False, 1.0)


def test_an_old_record_does_not_say_what_chance_is():
    assert has_learned({"final": {"val/accuracy": 0.01}}) is False
    assert has_learned({"final": {"val/accuracy": 0.1}}) is None
    assert result({"status": "failed: the loss is not finite", "final": {}}) == Result(False, math.inf)
    assert result(None) is None
