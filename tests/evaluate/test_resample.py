"""The bootstrap: edgetune/evaluate/resample.py."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.evaluate.resample import Bootstrap


def test_resamples_are_counted_as_they_are_drawn():
    bootstrap, rows = Bootstrap(samples=20, seed=3), 7
    drawn, counted = (np.concatenate([*parts]) for parts in (bootstrap.resamples(rows), bootstrap.draws(rows)))
    assert drawn.shape == counted.shape == (20, rows)
    assert [np.bincount(sample, minlength=rows).tolist() for sample in drawn] == counted.tolist()


def test_the_mean_is_that_of_the_sums_over_the_same_resamples():
    bootstrap, tops, counts = Bootstrap(samples=50), np.arange(9.0), np.arange(1.0, 10.0)
    sums = bootstrap.sums(np.stack([tops, counts], axis=1))
    assert bootstrap.mean_interval(tops, counts) == pytest.approx(bootstrap.interval(sums[:, 0] / sums[:, 1]))


def test_rows_without_anything_to_count_have_a_mean_of_0():
    assert Bootstrap(samples=10).mean_interval([0.0, 0.0], [0, 0]) == (0.0, 0.0)


def test_the_same_rows_give_the_same_interval():
    values = [1.0, 0.0, 1.0, 1.0]
    assert Bootstrap().mean_interval(values) == Bootstrap().mean_interval(values)


def test_the_interval_of_a_share_is_close_to_the_normal_one():
    right = [1.0] * 300 + [0.0] * 100
    low, high = Bootstrap(samples=4000).mean_interval(right)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)  # bootstrap noise of a quantile at 4,000 samples
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_more_confidence_is_wider():
    values = [0.0, 1.0] * 20
    narrow = Bootstrap(confidence=0.5).mean_interval(values)
    wide = Bootstrap(confidence=0.99).mean_interval(values)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_long_row_weighs_by_its_tokens():
    low, high = Bootstrap(samples=200).mean_interval([10.0, 990.0], [10, 330])
    assert (low, high) == (1.0, 3.0)  # a resample holds one row, the other, or both: 1, 3, or 1000 / 340


def test_memory_is_bounded_without_changing_the_interval(monkeypatch):
    values = list(np.random.default_rng(0).random(50))
    whole = Bootstrap(samples=300).mean_interval(values)
    monkeypatch.setattr("edgetune.evaluate.resample.VALUES_AT_ONCE", 500)
    assert Bootstrap(samples=300).mean_interval(values) == whole


def test_no_rows_have_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        Bootstrap().mean_interval([])
