"""McNemar's test and the paired bootstrap: edgetune/evaluate/paired.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from edgetune.evaluate.paired import Counted, bootstrap_difference, mcnemar, needed
from edgetune.evaluate.resample import Bootstrap


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (7, 21), (5, 5), (0, 48), (612, 700), (1480, 1600)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 5, 6, 28, 3000])
def test_what_is_needed_is_the_least_that_tells_them_apart(rows):
    won = needed(rows, alpha=0.05)
    if won is None:
        assert mcnemar(rows, 0) >= 0.05
    else:
        assert mcnemar(won, rows - won) < 0.05
        assert mcnemar(won - 1, rows - won + 1) >= 0.05


def _means(values):
    return Counted(np.asarray(values, float)[:, None], np.ones((len(values), 1)))


def test_the_bootstrap_of_means_is_that_of_their_paired_difference():
    """Against the normal interval of the mean difference: 400 rows, so the two lie within a few percent."""
    generator = np.random.default_rng(0)
    hard = generator.normal(size=400)  # what makes a row hard for both: far wider than the difference
    a, b = 5 * hard + generator.normal(size=400), 5 * hard + generator.normal(size=400) + 0.2
    (low, high), p_value = bootstrap_difference(_means(a), _means(b), Bootstrap(4000))
    error = 1.96 * (b - a).std(ddof=1) / np.sqrt(400)
    assert low == pytest.approx((b - a).mean() - error, abs=0.1 * error)
    assert high == pytest.approx((b - a).mean() + error, abs=0.1 * error)
    assert p_value < 0.05


def test_equal_targets_are_told_apart_no_more_often_than_the_confidence_allows():
    """Of 300 draws 15 are expected to exclude 0; 30 would be four standard deviations more."""
    generator, wrong = np.random.default_rng(1), 0
    for seed in range(300):
        hard = generator.random(100)
        a, b = (_means(generator.random(100) < hard) for _ in range(2))
        (low, high), _ = bootstrap_difference(a, b, Bootstrap(400, seed=seed))
        wrong += not low <= 0 <= high
    assert 3 <= wrong <= 30


def test_a_ratio_weighs_its_rows_by_their_bottoms():
    losses = Counted(np.array([[1.0], [30.0]]), np.array([[1.0], [10.0]]))
    assert losses.value == pytest.approx(31 / 11)


def test_a_label_that_occurs_nowhere_is_left_out_of_the_mean():
    assert Counted(np.array([[2.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]])).value == 0.5
