"""Closeness by hand."""

from __future__ import annotations

import pytest

from edgetune.evaluate.closeness import measure_closeness
from edgetune.evaluate.gain import gain_kept
from edgetune.evaluate.resample import Bootstrap


def test_rows_that_move_by_half_of_the_score_have_changed():
    found = measure_closeness(0.02, [(1, 1), (1, 0), (0, 1), (0.4, 0.8), (0.2, 0.7)] * 20, Bootstrap())
    assert (found.changed_rows, found.kl, found.rows) == (pytest.approx(0.6), 0.02, 100)
    low, high = found.interval
    assert 0.45 < low < 0.6 < high < 0.75


def test_a_bundle_that_answers_otherwise_is_refused_though_it_is_as_good():
    """Half of the rows are right with one, the other half with the other: the same score, another model."""
    scores = [(1, 0)] * 50 + [(0, 1)] * 50
    assert gain_kept(0.0, [one for one, _ in scores], [other for _, other in scores]).holds(0.97)
    assert not measure_closeness(0.01, scores, Bootstrap()).holds(0.1, 0.1)


def test_few_rows_do_not_show_that_too_many_have_changed():
    """1 of 5 is twice what is allowed, and may be chance."""
    assert measure_closeness(0.01, [(1, 0)] + [(1, 1)] * 4, Bootstrap()).holds(0.1, 0.1)
    assert not measure_closeness(0.01, [(1, 0)] * 40 + [(1, 1)] * 160, Bootstrap()).holds(0.1, 0.1)


def test_distributions_that_are_far_are_refused_alone():
    assert measure_closeness(0.2, [], Bootstrap()).holds(0.2, 0.1)
    assert not measure_closeness(0.21, [], Bootstrap()).holds(0.2, 0.1)
    assert measure_closeness(None, [], Bootstrap()).holds(0.2, 0.1)


def test_a_gain_that_was_learned_after_measuring_is_refused():
    """Three times the gain, on 100 rows; on 8 rows the same may be chance."""
    base, tuned, shipped = [0] * 10, [1] + [0] * 9, [1] * 3 + [0] * 7
    many = gain_kept(base * 10, tuned * 10, shipped * 10)
    assert many.kept == pytest.approx(3.0)
    assert many.holds(0.97)
    assert not many.holds(0.97, 1.25)
    assert many.holds(0.97, 3.0)
