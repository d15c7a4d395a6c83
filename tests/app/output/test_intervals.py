"""Student's t, Welch's differences and Holm's correction against published values."""

import random

import pytest

from app.output.intervals import holm, incomplete_beta, t_quantile, t_tail, welch_difference

# Three pairs of samples with t, degrees of freedom and p (Wikipedia and Rosetta Code, "Welch's t-test").
A1 = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
A2 = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
B1 = [17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8]
B2 = [
    21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8,
    20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5, 21.5, 21.8,
]  # fmt: skip
C1 = [19.8, 20.4, 19.6, 17.8, 18.5, 18.9, 18.3, 18.9, 19.5, 22.0]
C2 = [
    28.2, 26.6, 20.1, 23.3, 25.2, 22.1, 17.7, 27.6, 20.6, 13.7,
    23.2, 17.5, 20.6, 18.0, 23.9, 21.6, 24.3, 20.4, 24.0, 13.2,
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "p"), [(A1, A2, 0.0213780), (B1, B2, 0.1488417), (C1, C2, 0.0359723)])
def test_welch_gives_the_published_p(ours, theirs, p):
    difference = welch_difference(ours, theirs)
    assert difference.p == pytest.approx(p, abs=1e-6)
    assert (difference.low < 0 < difference.high) == (p > 0.05)


@pytest.mark.parametrize(("freedom", "level", "quantile"), [  # tables of Student's t
    (1, 0.95, 12.706), (4, 0.95, 2.776), (10, 0.95, 2.228), (10, 0.99, 3.169), (30, 0.95, 2.042), (120, 0.95, 1.980),
])  # fmt: skip
def test_quantiles_are_those_of_the_tables(freedom, level, quantile):
    assert t_quantile(freedom, level) == pytest.approx(quantile, abs=6e-4)


def test_the_beta_function_has_its_closed_forms():
    assert incomplete_beta(1, 1, 0.3) == pytest.approx(0.3)
    assert incomplete_beta(3, 1, 0.5) == pytest.approx(0.125)
    assert incomplete_beta(0.5, 0.5, 0.5) == pytest.approx(0.5)
    assert t_tail(1, 1) == pytest.approx(0.25)  # Cauchy's distribution
    assert t_tail(0, 3.7) == pytest.approx(0.5)


def test_holm_corrects_as_published():
    # R's manual of p.adjust, method "holm", on ordered and unordered values.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_single_seed_and_seeds_without_spread():
    assert welch_difference([1.0], [2.0, 3.0]).p is None
    assert welch_difference([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert welch_difference([1.0, 1.0], [0.0, 0.0]).low == 1.0


def test_equal_means_are_told_apart_as_rarely_as_it_says():
    draw = random.Random(1)
    samples = [[draw.gauss(0, 1) for _ in range(5)] + [draw.gauss(0, 5) for _ in range(5)] for _ in range(2000)]
    wrong = sum(welch_difference(sample[:5], sample[5:]).p < 0.05 for sample in samples)
    assert 0.03 < wrong / 2000 < 0.07
