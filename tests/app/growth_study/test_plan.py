"""What a growth study trains: equal FLOPs for all, rates tuned alike, branches that share the chain's steps."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.growth_study.arms import TUNING_SEED, Size, num_runs, stage_steps
from app.growth_study.runs import arms_of, decay_begins, end_of, extend, fit_options
from app.study.study import Study
from models.optim import Optim, lr_scale
from tests.app.growth_study.toys import design, record, setting, study


@given(st.lists(st.tuples(st.floats(1, 50), st.floats(0.05, 1)), min_size=1, max_size=5), st.integers(200, 5000))
def test_all_stages_together_cost_the_budget(stages, steps):
    flops = np.cumsum([each for each, _ in stages])  # sizes rise
    shares = np.array([share for _, share in stages])
    numbers = stage_steps(list(flops), list(shares[:-1] / shares.sum()), steps * float(flops[-1]))
    assert abs(np.dot(numbers, flops) - steps * flops[-1]) <= flops[-1] / 2 * (1 + 1e-9)


def test_every_arm_spends_its_part_of_the_budget():
    common = setting()
    for arm in arms_of(design(), common):
        spent = sum(steps * common.cost(size) for steps, size in zip(arm.steps, arm.sizes, strict=True))
        assert abs(spent - arm.budget * 1e12) <= common.cost(arm.sizes[-1]) / 2 * (1 + 1e-9), arm.name


def test_the_arms_are_what_was_asked_for():
    arms = {arm.name: arm for arm in arms_of(design(), setting())}
    assert arms["tokens4-grown"].sizes == (Size(2.0), Size(4.0))
    assert arms["tokens8-grown"].sizes == tuple(Size(tokens) for tokens in (1.0, 2.0, 4.0, 8.0))
    assert arms["layers2-grown"].sizes == (Size(), Size(1.0, 2))
    assert arms["tokens8-once"].sizes == (Size(4.0), Size(8.0))
    assert "tokens1-grown-at0.1" not in arms  # as it is grown already
    assert {arm.rate_of for arm in arms.values() if arm.name.startswith("tokens2-scratch")} == {"tokens2-scratch"}
    names = ("tokens1-grown", "tokens1-grown-at0.05", "tokens1-zero_keys")
    assert [len(arms[name].seeds) for name in names] == [4, 3, 4]
    apart = design(sizes=[4.0]).scratch_sizes
    assert [size.tokens for size in apart if size.depth == 1] == [0.5, 1, 2, 4]


@given(st.integers(100, 5000), st.floats(0.1, 0.9))
def test_a_branch_has_the_chains_learning_rate_until_it_branches_off(growth, decay_ratio):
    schedule = {"schedule": "wsd", "warmup": 50, "decay_ratio": decay_ratio}
    end = end_of(growth, **schedule)
    assert abs(decay_begins(end, **schedule) - growth) <= 1
    optim = Optim(schedule="wsd", warmup_steps=50, decay_ratio=decay_ratio)
    assert lr_scale(growth - 1, end, optim) == 1
    assert lr_scale(end - 1, end, optim) < 1


def test_options_of_a_chain_of_layers_and_of_the_published_recipe():
    arms, common = {arm.name: arm for arm in arms_of(design(), setting())}, setting()
    chain = arms["tokens8-grown"]
    options = fit_options(chain, common, 2.0, 3, tries=False)
    assert {
        "--model.num_param_tokens=64", "--growth.num_param_tokens=[128, 256, 512]", "--growth.init=split",
        "--growth.num_ffn_param_tokens=[512, 1024, 2048]", "--growth.rewarm_steps=20", "--optim.learning_rate=0.02",
        f"--growth.steps={chain.growths}", f"--trainer.max_steps={sum(chain.steps)}", "--seed_everything=3",
    } <= set(options)  # fmt: skip
    layers = fit_options(arms["layers2-grown"], common, 1.0, 1, tries=True)
    assert {"--growth.num_layers=[2]", "--growth.layer_init=stack", "--model.num_layers=1"} <= set(layers)
    assert not any(option.startswith(("--growth.init", "--growth.num_param")) for option in layers)
    published = fit_options(arms["tokens1-published"], common, 1.0, 1, tries=False)
    assert {f"--optim.restart_steps={arms['tokens1-published'].growths}", "--growth.init=fresh"} <= set(published)
    scratch = fit_options(arms["tokens2-scratch"], common, 1.0, 1, tries=False)
    assert "--model.num_param_tokens=128" in scratch
    assert not any(option.startswith("--growth") for option in scratch)


def test_the_plan_is_what_the_records_decide():
    """Nothing counts before its rate is chosen; who shares it follows; what is there is enough to go on with."""
    asked, common = design(), setting()
    arms = arms_of(asked, common)
    fresh = Study("growth-study", "", {}, [])
    extend(fresh, asked, common, arms)
    assert all("rung" in run.labels and not run.test for run in fresh.plan)
    tuned = [arm for arm in arms if arm.tunes]
    assert len(fresh.plan) == 5 * len(tuned)
    for run in fresh.plan:
        if run.labels["arm"] == "tokens1-grown":
            fresh.records[run.name] = record(run, [common.cost(size) for size in (Size(0.5), Size())])
    extend(fresh, asked, common, arms)
    counting = [run for run in fresh.plan if "rung" not in run.labels]
    assert {run.labels["arm"] for run in counting} == {
        "tokens1-grown", "tokens1-grown-at0.05", "tokens1-grown-at0.4", "tokens1-published",
    }  # fmt: skip
    assert {run.labels["factor"] for run in counting} == {2.0}
    whole = study()
    assert len(whole.plan) == len(whole.records) == num_runs(asked)
    assert len({run.name for run in whole.plan}) == len(whole.plan)
    assert not {run.labels["seed"] for run in whole.plan if "rung" not in run.labels} & {TUNING_SEED}


def test_one_rate_is_not_tuned():
    asked, common = design(learning_rates=[1.0]), setting()
    one = Study("growth-study", "", {}, [])
    extend(one, asked, common, arms_of(asked, common))
    assert not any("rung" in run.labels for run in one.plan)
    assert len(one.plan) == num_runs(asked)


@pytest.mark.parametrize(("changes", "message"), [
    ({"shares": [1.5]}, "--shares [1.5]: a share is between 0 and 1"),
    ({"chain_shares": [0.5, 0.6]}, "must leave a share for the largest size"),
    ({"depths": [1]}, "each must be at least 2"),
    ({"recipes": ["publishd"]}, "did you mean 'published'?"),
    ({"seeds": [0, 1]}, "has 0, the seed that chooses"),
    ({"depths": []}, "--recipes exact_layers is a question of layers; add that to --questions, or leave it out"),
    ({"flops": 0.0}, "--flops [0.0] must be above 0"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        design(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"flops": 1e11}, "tokens8-scratch would have 17 steps, not more than the 20 of --optim.warmup_steps"),
    ({"shares": [0.01]}, "stage 1 of tokens1-published would have 15 steps, not more than the 20 in which it warms up"),
    ({"shares": [0.1, 0.0001]}, "stage 1 of tokens1-grown-at0.0001 would have 0 steps"),
    ({"sizes": [0.001]}, "tokens0.000125 would have"),
])  # fmt: skip
def test_a_run_that_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        arms_of(design(**changes), setting())
