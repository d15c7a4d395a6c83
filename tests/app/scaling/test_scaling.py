"""`python -m app scaling`: the fits on curves whose law is known, the verb on folders of made-up records."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.__main__ import main
from app.output.figures import (
    LearningCurve,
    Panel,
    Series,
    learning_figure,
    mean_and_deviation,
    pixels,
    save,
    scaling_figure,
)
from app.output.numbers import short
from app.scaling.checks import option_at
from app.scaling.forecasts import Forecast, Measured, frontier, left_out, next_size, without_smallest
from app.scaling.law import Fit, Interval, Law, design, fit, search, size_classes, solve
from app.scaling.origin import kind_of_size, stranger
from app.scaling.points import LOSSES, Point
from app.scaling.survey import bounds, optimum_cells, value_of
from app.study.study import Planned, Study, compact, read_study

N, D = np.geomspace(1e4, 3.2e5, 6), np.geomspace(1e6, 1.6e7, 5)


def loss(n, d=None, *, E=1.5, A=1.0, alpha=0.35, B=1.0, beta=0.4):
    """A law whose terms are A and B at the smallest sizes."""
    return E + A * (n / 1e4) ** -alpha + (0 if d is None else B * (d / 1e6) ** -beta)


def factorial(*axes, seeds=1):
    return tuple(np.repeat(grid.ravel(), seeds) for grid in np.meshgrid(*axes, indexing="ij"))


def noise(n, deviation, seed=0):
    return deviation * np.random.default_rng(seed).normal(size=n)


# The fit --------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(0.3, 3), st.floats(0.2, 3), st.floats(0.1, 1.2), st.floats(1e-3, 1e9))
def test_a_noiseless_curve_gives_its_law_whatever_the_units(E, A, alpha, unit):
    law = fit({"N": unit * N}, loss(N, E=E, A=A, alpha=alpha), resamples=2).law
    assert law.exponents[0] == pytest.approx(alpha, rel=1e-3)
    assert law.irreducible == pytest.approx(E, abs=1e-2 * A)
    assert law.coefficients[0] == pytest.approx(A * (unit * 1e4) ** alpha, rel=5e-2)
    assert law.r2 == pytest.approx(1, abs=1e-6)
    assert not law.undetermined


@settings(max_examples=8)
@given(st.floats(0.15, 0.9), st.floats(0.15, 0.9))
def test_a_noiseless_surface_gives_its_law(alpha, beta):
    n, d = factorial(N, D)
    law = fit({"N": n, "D": d}, loss(n, d, alpha=alpha, beta=beta), resamples=2).law
    assert law.exponents == pytest.approx((alpha, beta), rel=1e-2)
    np.testing.assert_allclose(law.predict(n, d), loss(n, d, alpha=alpha, beta=beta), atol=1e-4)
    assert law.parameters().keys() == {"E", "A", "alpha", "B", "beta"}


@pytest.mark.parametrize("alpha", [0.2, 0.35, 0.8])
def test_variable_projection_finds_what_brute_force_finds(alpha):
    y = loss(N, alpha=alpha) + noise(len(N), 0.02)
    law = fit({"N": N}, y, resamples=2).law
    A = np.linspace(0, 3, 60)[:, None]
    best = min(
        float(((y - E - A * (N / 1e4) ** -x) ** 2).sum(1).min())
        for x in np.linspace(0.02, 2.9, 60)
        for E in np.linspace(0, 2.5, 60)
    )
    assert law.points * law.rms**2 <= best * (1 + 1e-9)


def test_no_step_in_any_direction_lowers_the_squares():
    n, d = factorial(N, D)
    y = loss(n, d) + noise(len(n), 0.01)
    law = fit({"N": n, "D": d}, y, resamples=2).law
    values = np.array([law.irreducible, *law.coefficients, *law.exponents])
    for place in range(5):
        for factor in (0.999, 1.001):
            E, A, B, alpha, beta = np.where(np.arange(5) == place, factor * values, values)
            assert ((y - E - A * n**-alpha - B * d**-beta) ** 2).sum() >= law.points * law.rms**2 * (1 - 1e-9)


@given(st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_least_squares_meet_the_conditions_of_a_constrained_minimum(seed, K):
    draws = np.random.default_rng(seed)
    X, y = design(draws.normal(size=(7, K)), draws.normal(size=(3, K))), draws.normal(size=(2, 7))
    theta, squares = solve(X, y)
    residual = y[:, None] - np.einsum("gnp,rgp->rgn", X, theta)
    slope = np.einsum("gnp,rgn->rgp", X, residual) / np.linalg.norm(X, axis=1)  # 0 where free, else not uphill
    assert (theta >= 0).all()
    np.testing.assert_allclose(squares, (residual**2).sum(-1), atol=1e-9)
    assert (slope <= 1e-8).all()
    assert (abs(slope[theta > 0]) <= 1e-8).all()


def test_rows_of_losses_are_fitted_apart():
    log_n = np.log(N / N.mean())[:, None]
    y = np.stack([loss(N, alpha=0.3), loss(N, alpha=0.7)])
    theta, exponents = search(log_n, y)
    for row in (0, 1):
        alone, exponent = search(log_n, y[row : row + 1])
        np.testing.assert_allclose(theta[row], alone[0])
        np.testing.assert_allclose(exponents[row], exponent[0])


# Intervals ------------------------------------------------------------------------------------------------------------


def test_nine_in_ten_intervals_hold_the_truth():
    n, ahead = np.repeat(N[:5], 2), 2 * N[4]
    held = []
    for seed in range(100):
        found = fit({"N": n}, loss(n) + noise(len(n), 0.01, seed), resamples=100, seed=seed)
        intervals, (low, high) = found.intervals(), found.band(ahead)
        run, new = found.predict(ahead), loss(ahead) + noise(1, 0.01, seed + 1000)[0]
        held.append(
            [
                intervals["alpha"].low <= 0.35 <= intervals["alpha"].high,
                intervals["E"].low <= 1.5 <= intervals["E"].high,
                low <= loss(ahead) <= high,
                run.low <= new <= run.high,
            ]
        )
    assert (np.mean(held, 0) > 0.8).all()
    assert (np.mean(held, 0) < 0.98).all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 0.5), (0.6, 0.3)])
def test_a_surface_with_noise_has_its_exponents_inside(alpha, beta):
    n, d = factorial(N, D)
    y = loss(n, d, alpha=alpha, beta=beta) + noise(len(n), 0.005, 2)
    intervals = fit({"N": n, "D": d}, y, level=0.99, resamples=200).intervals()
    for name, truth in {"alpha": alpha, "beta": beta, "E": 1.5}.items():
        assert intervals[name].low <= truth <= intervals[name].high
        assert intervals[name].high - intervals[name].low < 0.6


def test_the_bootstrap_is_its_seeds_alone():
    y = loss(N) + noise(len(N), 0.01)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (fit({"N": N}, y, resamples=20, seed=seed).intervals()["alpha"] for seed in (1, 1, 2))
    assert one == same
    assert one.value == other.value
    assert one.low != other.low
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_more_noise_is_a_wider_interval_and_a_run_is_less_sure_than_the_law():
    quiet, loud = (fit({"N": N}, loss(N) + noise(len(N), deviation), resamples=200) for deviation in (0.001, 0.02))
    widths = [found.intervals()["E"].high - found.intervals()["E"].low for found in (quiet, loud)]
    assert widths[0] < widths[1]
    low, high = loud.band([N[-1], 2 * N[-1]])
    one, many = loud.predict(N[-1]), loud.predict(N[-1], runs=100)
    assert one.high - one.low > high[0] - low[0]
    assert one.high - one.low > many.high - many.low
    assert high[1] - low[1] > high[0] - low[0]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ({"N": [1, 4, 16]}, [3, 2, 1.5], "at least 4 different N; there are 3"),
        ({"N": [1, 1.05, 4, 4.1, 16, 16.2]}, [3, 3, 2, 2, 1, 1], "at least 4 different N; there are 3"),
        ({"D": [10, 12, 15, 20]}, [3, 2.5, 2.2, 2], "factor of 4 or more; they span 2"),
        ({"N": [1, 4, 16, 64]}, [3, 2, float("nan"), 1], "losses must be finite"),
        ({"N": [1, 4, 16, 64]}, [3, 2, 1], "one for each point"),
        ({"N": [0, 4, 16, 64]}, [3, 2, 1.5, 1], "N must be above 0"),
        ({"N": [1, 4, 16, 64]}, [2, 2, 2, 2], "all losses are equal"),
        ({"N": [1, 4, 16] * 2, "D": [1, 4, 16, 4, 16, 1]}, range(6), "at least 7 points; there are 6"),
        ({"N": [1, 4, 16] * 3, "D": [1, 1, 1, 4, 4, 4] + [1] * 3}, range(9), "3 different D; there are 2"),
        ({"N": [1, 4, 16, 64] * 2, "D": [20, 80, 320, 1280] * 2}, range(8), "cannot be told apart"),
    ],
)
def test_too_little_to_fit_is_refused(sizes, losses, message):
    with pytest.raises(ValueError, match=message):
        fit(sizes, list(losses))


def test_an_exponent_at_the_edge_is_not_a_result():
    rising = fit({"N": N}, 3 - loss(N), resamples=20)
    step = fit({"N": N}, np.where(N[0] == N, 3, 2) + noise(len(N), 1e-4), resamples=20)
    flat = fit({"N": N}, 2 + noise(len(N), 0.01, 3), resamples=100)
    for found in (rising, step, flat):
        assert found.undetermined == ("alpha",)
        with pytest.raises(ValueError, match="alpha not determined by these points"):
            next_size(found, {"N": N})


def test_ends_of_the_search_range_are_not_printed_as_values():
    assert bounds(Interval(0.5, 0.01, 0.7), exponent=True) == "< 0.01 .. 0.7000"
    assert bounds(Interval(0.5, 0.2, 3.0), exponent=True) == "0.2000 .. > 3"


# Forecasts ------------------------------------------------------------------------------------------------------------


def test_the_largest_size_is_predicted_by_the_others():
    n, d = factorial(N, D, seeds=2)
    y = loss(n, d) + noise(len(n), 0.005, seed=1)
    forecast = left_out({"N": n, "D": d}, y, resamples=200, level=0.99)
    assert forecast.sizes == {"N": pytest.approx(N[-1]), "D": pytest.approx(D[-1])}
    assert forecast.runs == 2
    assert forecast.inside
    assert forecast.missed_by == pytest.approx(forecast.observed - forecast.loss.value)
    assert abs(forecast.missed_by) < 0.02
    worse = left_out({"N": n, "D": d}, np.where(n > N[-2], y + 0.3, y), resamples=200, level=0.99)
    assert worse.inside is False
    assert worse.missed_by == pytest.approx(forecast.missed_by + 0.3)


def test_what_nobody_trained_is_marked_as_predicted():
    n, d = factorial(N, D)
    forecast = next_size(fit({"N": n, "D": d}, loss(n, d), resamples=20), {"N": n, "D": d})
    assert forecast.sizes == {"N": pytest.approx(2 * N[-1]), "D": pytest.approx(D[-1])}
    assert forecast.loss.value == pytest.approx(loss(2 * N[-1], D[-1]), abs=1e-3)
    assert forecast.inside is None
    assert forecast.missed_by is None
    assert forecast.plain()["only_predicted"] is True


def test_leaving_out_needs_enough_to_stay():
    with pytest.raises(ValueError, match="at least 4 different N; there are 3"):
        left_out({"N": N[:4]}, loss(N[:4]))


def test_the_frontier_has_the_least_loss_at_its_budget():
    n, d = factorial(N, D)
    found = fit({"N": n, "D": d}, loss(n, d) + noise(len(n), 0.005), resamples=200)
    edge, budgets = frontier(found, "unknown", n, d, 7 * n * d), np.geomspace(1e11, 1e14, 4)
    best_N, best_D = edge.sizes(budgets)
    np.testing.assert_allclose(7 * best_N * best_D, budgets)
    for factor in (0.9, 1.1):
        assert (found.law.predict(best_N * factor, best_D / factor) > found.law.predict(best_N, best_D)).all()
    assert edge.a.value + edge.b.value == pytest.approx(1)
    assert edge.a.low <= 0.4 / 0.75 <= edge.a.high
    assert edge.b.low <= 0.35 / 0.75 <= edge.b.high
    low, high = edge.band(budgets)
    assert (low < best_N).all()
    assert (best_N < high).all()
    assert edge.flops == pytest.approx(7)


def test_no_frontier_without_both_exponents():
    n, d = factorial(N, D)
    found = fit({"N": n, "D": d}, loss(n) + noise(len(n), 0.001), resamples=20)
    assert "beta" in found.undetermined
    with pytest.raises(ValueError, match="beta not determined"):
        frontier(found, "unknown", n, d, n * d)


@pytest.mark.parametrize(
    ("parameters", "tokens", "reason"),
    [
        (336, 5e6, "below the smallest model, 16.5k parameters"),
        (3e5, 5e6, "above the largest model, 213k parameters"),
        (1e5, 1e5, "below the shortest run, 1.00M tokens"),
        (1e5, 1.5e7, "beyond the longest run, 10.0M tokens, beyond 4 epochs, 8.00M tokens"),
        (1e5, 9e6, "beyond 4 epochs, 8.00M tokens"),
        (16_500, 8e6, ""),
        (213_000, 1e6, ""),
    ],
)
def test_sizes_outside_what_was_measured_are_named(parameters, tokens, reason):
    assert Measured(16_500, 213_000, 1e6, 1e7, epoch=2e6).beyond(parameters, tokens) == reason


@pytest.mark.parametrize("epoch", [None, 5e5])
def test_an_optimum_is_determined_just_where_it_was_measured_around(epoch):
    n, d = factorial(N, D)
    edge = frontier(fit({"N": n, "D": d}, loss(n, d), resamples=5), "unknown", n, d, 7 * n * d, epoch)
    low, high = edge.determined
    assert low < edge.middle < high
    for budget in (low * 1.01, edge.middle, high / 1.01):
        assert not edge.optimum(budget).beyond
        assert edge.optimum(budget).plain()["tokens"] <= min(D[-1], 4 * (epoch or np.inf))
    for budget in (low / 1.01, high * 1.01, 1e6 * high):
        plain = edge.optimum(budget).plain()
        assert set(plain) == {"flops", "not_determined"}
    value, said = optimum_cells(edge.optimum(high * 1.01), edge)
    assert value == "not determined"
    assert ("beyond 4 epochs, 2.00M tokens" in said) == (epoch is not None)


def test_an_optimum_nowhere_inside_is_determined_nowhere():
    n, d = factorial(N, D)
    found = fit({"N": n, "D": d}, loss(n, d, A=0.02), resamples=5)  # so much data that the smallest model is too large
    edge = frontier(found, "unknown", n, d, 7 * n * d)
    assert edge.determined is None
    reasons = "below the smallest model, 10.0k parameters, beyond the longest run, 16.0M tokens"
    assert edge.optimum(7 * N[0] * D[-1]).beyond == reasons


def test_the_interval_of_an_optimum_covers_the_one_without_the_smallest_tokens():
    n, d = factorial(N, D)
    sizes, y = {"N": n, "D": d}, np.where(d < D[1], loss(n, d) + 0.3, loss(n, d)) + noise(len(n), 1e-3)
    edge = frontier(fit(sizes, y, resamples=20), without_smallest(sizes, y, resamples=20), n, d, 7 * n * d)
    budget = 1.1 * edge.determined[0]
    optimum = edge.optimum(budget)
    moved = optimum.without_smallest.parameters.value
    truth = frontier(fit(sizes, loss(n, d), resamples=2), "unknown", n, d, 7 * n * d).optimum(budget)
    assert moved == pytest.approx(truth.parameters.value, rel=0.1)
    assert abs(np.log(optimum.parameters.value / moved)) > 0.2
    for value in (optimum.parameters.value, moved):
        assert optimum.parameters.low <= value <= optimum.parameters.high
    assert f"without the smallest D {short(moved)}" in optimum_cells(optimum, edge)[1]
    few = d < D[3]
    with pytest.raises(ValueError, match="needs at least 3 different D; there are 2"):
        without_smallest({"N": n[few], "D": d[few]}, y[few], resamples=2)


def test_an_e_at_its_bound_has_a_sign():
    straight = fit({"N": N}, 5 - 0.3 * np.log(N), resamples=5)  # falls for ever, which no E above 0 allows
    assert straight.law.irreducible == 0
    assert straight.law.at_bound
    assert value_of("E", straight, 0.0) == "0.000†"
    assert value_of("A", straight, 4.0) == "4.000"
    assert not fit({"N": N}, loss(N), resamples=5).law.at_bound


# What N is ------------------------------------------------------------------------------------------------------------


def point(n, d=1e6, value=2.0, **options):
    return Point("run", "TokenFormer", 1, int(n), int(d), 6.5 * n * d, value, 100, options)


def test_the_law_says_which_n_it_is_of():
    wide = [point(width**2, d_model=width, num_heads=width // 16, num_param_tokens=width // 2) for width in (32, 64)]
    tall = [point(tokens, d_model=64, num_heads=4, num_param_tokens=tokens) for tokens in (32, 128)]
    assert kind_of_size(wide) == "of models that differ in d_model 32 .. 64 with num_heads, num_param_tokens"
    assert kind_of_size(tall) == "of models that differ in num_param_tokens 32 .. 128"
    assert kind_of_size(wide + tall).endswith("they vary apart from each other, so N does not say which model is meant")
    assert not stranger(wide, {"d_model": 48, "num_heads": 3, "num_param_tokens": 24})
    assert stranger(wide, tall[1].options) == "num_param_tokens"
    assert stranger(tall, wide[0].options) == "d_model, num_heads"


def test_the_run_at_the_optimum_has_a_width_that_heads_divide():
    points = [point(16 * width**2, d_model=width, num_heads=width // 16) for width in (32, 64, 128)]
    assert [option_at(points, "d_model", 16 * width**2) for width in (32, 70, 77, 128)] == [32, 72, 80, 128]


def test_tokens_that_hardly_differ_are_one_size():
    assert size_classes([100, 210, 104, 200, 1000]).tolist() == [0, 1, 0, 1, 2]
    assert [short(size) for size in (950, 12_345, 999_990, 1.05e6, 2e13)] == ["950", "12.3k", "1.00M", "1.05M", "20.0T"]


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures_are_the_same_files_every_time(tmp_path):
    series = Series("A", (N, loss(N)), (N, loss(N)), (loss(N) - 0.1, loss(N) + 0.1))
    for name in ("one.png", "two.png"):
        save(scaling_figure([Panel("L(N)", "N", "bits", [None, series])]), tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert b"Software" not in one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_learning_curves_have_mean_deviation_and_growth():
    runs = [([0, 10, 20], [4, 2, 1]), ([0, 10, 15], [2, 2, 2])]
    x, mean, deviation = mean_and_deviation(runs)
    assert x.tolist() == [0, 10, 15]
    np.testing.assert_allclose(mean, [3, 2, 1.75])
    np.testing.assert_allclose(deviation, [2**0.5, 0, 0.125**0.5])
    figure = learning_figure([LearningCurve("A", runs, (12,))], x_label="steps", y_label="bits")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A (2 runs)"]
    assert [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1] == [12]
    assert pixels(figure).shape[-1] == 3


# The verb -------------------------------------------------------------------------------------------------------------


def record(n, d, value, *, model="Transformer", seed=1, **changes):
    """A record as `callbacks.records` writes it."""
    spent = {"step": 100, "tokens": int(d), "flops": 6.5 * n * d, "seconds": 1.0, "parameters": int(n)}
    options = {"task": "CharText", "corpus": "tiny-shakespeare", "seq_len": 64, "seed": seed, "vocab_size": 65}
    return {
        "format": 1, "command": ["app"], "model": model, "model_options": {"vocab_size": 65, "d_model": 8},
        "data": "CharText", "data_options": options, "optim": {"learning_rate": 1e-3}, "seed": seed, "max_steps": 100,
        "versions": {"torch": "2"}, "device": "x86_64", "processes": 1, "precision": "32-true", "history": [], **spent,
        "status": "finished", "growth_events": [],
        "final": spent | {"val/loss": value * 0.69, "val/bits_per_char": value, "val/accuracy": 0.5},
        "test": {"test/loss": value * 0.7, "test/bits_per_char": value * 1.01},
    } | changes  # fmt: skip


def lay(folder, **content):
    for name, plain in content.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "record.json").write_text(json.dumps(plain))


def runs_of(model, ns, ds, seeds=(1,)):
    for place, (n, d, seed) in enumerate(zip(*factorial(ns, ds, np.array(seeds)), strict=True)):
        value = loss(n, d) + noise(1, 0.004, 100 * place + int(seed))[0]
        yield f"{model}-{n:.0f}-{d:.0f}-{seed}", record(n, d, value, model=model, seed=int(seed))


@pytest.fixture
def runs(tmp_path) -> Path:
    """Runs of a Transformer over sizes and tokens, of a TokenFormer over sizes alone, and some that are no points."""
    folder = tmp_path / "runs"
    lay(folder, **dict(runs_of("Transformer", N[:5], D[:4])), **dict(runs_of("TokenFormer", N[:5], D[:1], (1, 2))))
    return folder


def scaling(capsys, *args) -> tuple[int, str, str]:
    code = main(["scaling", *map(str, args)])
    return code, *capsys.readouterr()


def test_the_verb_fits_prints_and_writes(runs, tmp_path, capsys):
    out = tmp_path / "out"
    code, printed, _ = scaling(capsys, runs, "--out", out, "--resamples", 100, "--tensorboard", "true")
    told = re.findall(r"^(\d+)/(\d+) ", printed, re.M)
    assert [int(number) for number, _ in told] == list(range(1, int(told[0][1]) + 1))  # a bar ends when all is fitted
    assert code == 0
    assert "Transformer, 20 runs" in printed
    assert "TokenFormer, 10 runs" in printed
    assert "L(D) needs at least 4 different D; there are 1" in printed
    assert "only predicted" in printed
    plain = json.loads((out / "scaling.json").read_text())
    tokenformer, transformer = plain["findings"]["models"]
    assert tokenformer["model"] == "TokenFormer"
    assert "reason" in tokenformer["frontier"]
    both = next(law for law in transformer["laws"] if law["law"] == "L(N, D)")
    assert both["points"] == 20
    assert both["parameters"]["alpha"]["low"] < 0.35 < both["parameters"]["alpha"]["high"]
    assert both["left_out"]["only_predicted"] is False
    assert both["next_size"]["only_predicted"] is True
    assert transformer["frontier"]["flops_per_parameter_and_token"] == pytest.approx(6.5)
    with (out / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert {row["seed"] for row in rows} == {"1", "2"}
    assert "## Transformer, 20 runs" in (out / "scaling.md").read_text()
    assert len(list((out / "tensorboard").iterdir())) == 1
    before = (out / "scaling.png").read_bytes()
    again = scaling(capsys, runs, "--out", out, "--resamples", 100, "--tensorboard", "true", "--quiet")
    assert again == (0, re.sub(r"^(scaling: |\d+/\d+ ).*\n", "", printed, flags=re.M), "")
    assert (out / "scaling.png").read_bytes() == before
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_what_scaling_writes_is_reported_and_fitted_again(runs, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "R.md"
    assert scaling(capsys, runs, "--out", out, "--resamples", 100)[0] == 0
    tables = (out / "scaling.md").read_text().partition("### ")[2].partition("†:")[0]
    for source in (out, out / "scaling.json"):
        assert main(["report", str(source), "--out", str(report)]) == 0
        text = report.read_text()
        assert f"scaling {runs} --out {out} --resamples 100`: 30 of 30 runs" in text
        assert tables.strip() in text  # by the same metric, level, resamples and seed
        assert (tmp_path / "r" / ("out.png" if source == out else "scaling.png")).is_file() or source == out
    before = (out / "scaling.csv").read_text()
    assert scaling(capsys, out / "scaling.json", "--out", out, "--resamples", 100)[0] == 0
    assert (out / "scaling.csv").read_text() == before


def test_runs_of_one_name_in_two_studies_stay_two(tmp_path, capsys):
    for seed in (1, 2):
        found = {name.partition("-s")[0]: plain for name, plain in runs_of("Palm", N[:4], D[:1], (seed,))}
        lay(tmp_path / str(seed), **{f"n{place}": plain for place, plain in enumerate(found.values())})
    studies = []
    for seed in (1, 2):
        records = {name: compact(json.loads((tmp_path / str(seed) / name / "record.json").read_text()))
                   for name in ("n0", "n1", "n2", "n3")}  # fmt: skip
        Study("compare", "", {}, [Planned(name, {}, []) for name in records], records).save(tmp_path / str(seed))
        studies.append(tmp_path / str(seed) / "study.json")
    assert scaling(capsys, *studies, "--out", tmp_path / "out", "--resamples", 100)[0] == 0
    assert len(read_study(tmp_path / "out" / "scaling.json").runs()) == 8


def test_what_is_no_point_is_named_with_its_reason(runs, capsys):
    lay(
        runs,
        damaged={"format": 7},
        stopped=record(9e4, 1e6, 2.0, status="interrupted"),
        grown=record(9e4, 1e6, 2.0, growth_events=[{"step": 5}]),
        speechless=record(9e4, 1e6, 2.0, final={"val/loss": 1.2}),
        broken=record(9e4, 1e6, 2.0, final={"val/bits_per_char": None}),
        twice=json.loads(next(runs.glob("Transformer-*/record.json")).read_text()),
    )
    (runs / "damaged" / "record.json").write_text("{")
    code, printed, _ = scaling(capsys, runs, "--resamples", 100)
    assert code == 0
    skipped = [line for line in printed.splitlines() if line.startswith("skipped ")]
    reasons = {
        "damaged": "cannot be read", "stopped": "not finished (interrupted)", "grown": "it grew",
        "speechless": "no val/bits_per_char in its record (val/loss)", "broken": "val/bits_per_char is None",
        "twice": "the same run as",
    }  # fmt: skip
    assert len(skipped) == len(reasons)
    for name, reason in reasons.items():
        assert any(f"{runs / name}" in line and reason in line for line in skipped), (name, skipped)


def test_runs_shorter_than_ten_warm_ups_are_no_points(tmp_path, capsys):
    runs = tmp_path / "runs"
    lay(runs, **dict(runs_of("Transformer", N[:4], D[:1])))
    odd = {f"odd{n}": record(9e4, 1e6, 2.0, seed=n, optim={"warmup_steps": warmup}) for n, warmup in ((1, 10), (2, 11))}
    lay(runs, **odd, odd3=record(9e4, 1e6, 2.0, model="Palm", optim={"warmup_steps": 50}))
    code, printed, _ = scaling(capsys, runs, "--resamples", 100, "--out", tmp_path / "out")
    assert code == 0
    assert "in 5 runs" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("skipped "))
    assert line.endswith(
        "2 runs shorter than 10 warm-ups, which are no points: Palm 1 (of 100 steps, fewer than 10 x 50); Transformer "
        "1 (of 100 steps, fewer than 10 x 11)"
    )
    assert line.removeprefix("skipped ") in (tmp_path / "out" / "scaling.md").read_text()
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "R.md")]) == 0
    assert line.removeprefix("skipped ") in (tmp_path / "R.md").read_text()


def test_nothing_is_fitted_to_short_runs_alone(tmp_path, capsys):
    lay(tmp_path / "runs", **{f"n{n:.0f}": record(n, 1e6, loss(n), optim={"warmup_steps": 11}) for n in N})
    code, printed, error = scaling(capsys, tmp_path / "runs", "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert "RUNS have no run to fit: 6 runs shorter than 10 warm-ups" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_runs_to_check_are_predicted_and_not_fitted(tmp_path, capsys):
    runs, out, checks = (tmp_path / name for name in ("runs", "out", "checks"))
    lay(runs, **dict(runs_of("Transformer", N[:4], D[:4])))

    def findings(*args) -> dict:
        assert scaling(capsys, *args, "--out", out, "--resamples", 100)[0] == 0
        (model,) = json.loads((out / "scaling.json").read_text())["findings"]["models"]
        return model

    before = findings(runs)
    optima = [optimum for optimum in before["frontier"]["optimal"] if "tokens" in optimum]
    sizes = [(optimum["parameters"]["value"], optimum["tokens"]) for optimum in optima]
    ((n, d),) = ((n, d) for n, d in sizes if before["run_at_optimum"] == f"N = {short(n)}, D = {short(d)}")
    lay(checks, best=record(n, d, loss(n, d)), far=record(2e6, d, loss(2e6, d)), palm=record(n, d, 2.0, model="Palm"))
    for after in (findings(runs, "--check", f"[{checks}]"), findings(out / "scaling.json")):
        assert after["laws"] == before["laws"]
        near, far = after["checks"]
        assert near["inside"]
        assert near["remark"] == "at the optimum of its budget"
        assert near["observed"] == pytest.approx(loss(n, d), rel=1e-3)
        assert far["remark"].startswith("above the largest model")
    text = (out / "scaling.md").read_text()
    assert "; at the optimum of its budget |" in text
    assert "palm: no law of Palm to check" in text
    code, _, error = scaling(capsys, runs, "--check", f"[{tmp_path / 'none'}]")
    assert code == 2
    assert f"--check {tmp_path / 'none'} does not exist" in error


@pytest.mark.parametrize(("factors", "seeds", "few"), [
    ((0.5, 1, 2), (1,), "3 tried; seeds 1; fewer than 5 learning rates and 3 seeds"),
    ((0.5, 1, 2, 4, 8), (1, 2, 3), "5 tried; seeds 3"),
    ((1, 2, 4, 8, 16), (1, 2, 3), "5 tried, the best at an end of them in 12 of 12 runs; seeds 3"),
])  # fmt: skip
def test_the_law_says_how_well_its_points_were_tuned(tmp_path, capsys, factors, seeds, few):
    study = Study("compare", "", {}, [], findings={"chosen": []})
    for n, seed in ((n, seed) for n in N[:4] for seed in seeds):
        for factor in factors if seed == 1 else (1,):
            name = f"n{n:.0f}-lr{factor}-s{seed}"
            labels = {"task": "shakespeare", "model": "Palm", "d_model": 8, "budget": n, "factor": factor, "seed": seed}
            study.plan.append(Planned(name, labels, []))
            study.records[name] = compact(
                record(n, 1e6, loss(n) + seed / 1e3 + 0.01 * (factor != 1), model="Palm", seed=seed)
            )
            study.findings["chosen"] += [name] * (factor == 1)
    study.save(tmp_path)
    code, _, _ = scaling(capsys, tmp_path / "study.json", "--resamples", 100, "--out", tmp_path / "out")
    assert code == 0
    assert f"| learning rates |  | {few} |" in (tmp_path / "out" / "scaling.md").read_text()


def test_the_metric_may_be_another_loss(runs, tmp_path, capsys):
    for metric, factor in (("test/bits_per_char", 1.01), ("val/loss", 0.69)):
        code, *_ = scaling(capsys, runs, "--metric", metric, "--out", tmp_path / "out", "--resamples", 100)
        assert code == 0
        found = json.loads((tmp_path / "out" / "scaling.json").read_text())["findings"]["models"][1]["laws"][2][
            "parameters"
        ]
        assert found["E"]["low"] < factor * 1.5 < found["E"]["high"]
    assert LOSSES.fullmatch("test/loss/T=1024")


def test_l_of_n_is_of_the_largest_number_of_tokens_with_enough_sizes(tmp_path, capsys):
    runs = dict(runs_of("Palm", N[:5], 1.02 ** np.arange(3) * 1e6)) | dict(runs_of("Palm", N[:2], D[1:]))
    lay(tmp_path / "runs", **runs)
    code, printed, _ = scaling(capsys, tmp_path / "runs", "--resamples", 100)
    assert code == 0
    assert "L(N) at D = 1.02M" in printed
    assert "15 points" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "Copying"}, "--data is"),
        ({"data_options": {"corpus": "text8", "seq_len": 64, "vocab_size": 65}}, "--data.corpus is"),
        ({"model_options": {"vocab_size": 27}}, "--model.vocab_size is"),
    ],
)
def test_runs_of_different_tasks_are_refused(runs, capsys, change, message):
    odd = record(7e4, 1e6, 2.0, **change)
    odd["data_options"].setdefault("task", "CharText")
    lay(runs, odd=odd)
    code, _, error = scaling(capsys, runs)
    assert code == 2
    assert message in error
    assert f"{runs / 'odd'}" in error
    assert "name the runs of one task only" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "val/accuracy"], "--metric val/accuracy is no loss"),
        (["--intervals", "90"], "--intervals 90.0 is not between 0 and 1"),
        (["--resamples", "5"], "--resamples is 5; it must be at least 100"),
        (["--seed", "-1"], "--seed -1 is not between"),
        (["--tensorboard", "true"], "--tensorboard needs a folder to write to; give it by --out"),
        (["--metric", "test/loss/T=7"], "RUNS have no run to fit: 30 skipped, such as"),
    ],
)
def test_mistakes_end_in_one_line(runs, capsys, options, message):
    code, _, error = scaling(capsys, runs, *options)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_an_out_that_is_a_file_is_refused(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, error = scaling(capsys, runs, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "is no folder" in error


def test_folders_without_enough_say_so(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, _, error = scaling(capsys, tmp_path / "empty")
    assert code == 2
    assert "no record.json in them" in error
    code, _, error = scaling(capsys, tmp_path / "nowhere")
    assert code == 2
    assert "does not exist" in error
    lay(tmp_path / "few", **dict(runs_of("Palm", N[:3], D[:1])))
    code, _, error = scaling(capsys, tmp_path / "few")
    assert code == 2
    assert "Palm: L(N) needs at least 4 different N; there are 3" in error
    assert error.count("\n") == 1


def test_laws_and_forecasts_are_plain_values():
    found = fit({"N": N}, loss(N), resamples=5)
    assert isinstance(found, Fit)
    assert isinstance(found.law, Law)
    assert isinstance(next_size(found, {"N": N}), Forecast)
    json.dumps(next_size(found, {"N": N}).plain())
