"""Gain kept, on numbers whose answer is known."""

from __future__ import annotations

import pytest

from edgetune.evaluate.gain import gain_kept


def test_all_of_the_gain_is_kept_by_equal_answers() -> None:
    found = gain_kept([0] * 9 + [1], [1] * 8 + [0, 1], [1] * 8 + [0, 1])
    assert found.kept == 1.0
    assert found.interval == (1.0, 1.0)


def test_half_of_the_gain_is_kept_where_half_of_the_new_answers_are_lost() -> None:
    found = gain_kept([0] * 40, [1] * 20 + [0] * 20, [1] * 10 + [0] * 30)
    assert found.kept == pytest.approx(0.5)
    low, high = found.interval or (0, 0)
    assert low < 0.5 < high
    assert (found.base, found.tuned, found.shipped) == (0.0, 0.5, 0.25)


def test_a_bundle_worse_than_the_base_keeps_less_than_nothing() -> None:
    assert gain_kept([1, 0] * 10, [1] * 20, [0] * 20).kept == -1.0


def test_losses_are_weighed_by_tokens_and_lower_is_better() -> None:
    """Means: base (30 + 1) / 4, fine-tune (10 + 1) / 4, bundle (20 + 1) / 4 nats a token."""
    found = gain_kept([30.0, 1.0] * 10, [10.0, 1.0] * 10, [20.0, 1.0] * 10, counts=[3, 1] * 10, is_loss=True)
    assert found.kept == pytest.approx(0.5)
    assert found.base == pytest.approx(31 / 4)


def test_no_gain_is_no_share() -> None:
    found = gain_kept([1, 1, 0], [1, 0, 1], [1, 1, 1])
    assert found.kept is None
    assert found.interval is None


def test_the_base_may_be_one_known_number() -> None:
    assert gain_kept(0.25, [1, 1, 1, 1], [1, 1, 1, 0]).kept == pytest.approx((0.75 - 0.25) / 0.75)


def test_rows_must_belong_together() -> None:
    with pytest.raises(ValueError, match="same shape"):
        gain_kept([0, 0], [1, 1], [1, 1], counts=[1, 1, 1])


def test_rows_are_drawn_once_for_base_fine_tune_and_bundle() -> None:
    """Each row gains 2 and keeps 1, though the rows differ by far more than that."""
    base = [float(10 * row) for row in range(40)]
    found = gain_kept(base, [value + 2 for value in base], [value + 1 for value in base])
    assert found.kept == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))


def test_a_bundle_that_may_be_as_good_is_not_called_worse() -> None:
    found = gain_kept([1, 0] * 50, [1, 0] * 50, [0, 0] + [1, 0] * 49)
    assert found.kept is None
    assert not found.is_worse
    assert found.holds(0.97)


def test_a_gain_that_the_rows_do_not_show_is_no_share() -> None:
    """One row in 500: a lost row would be all of the gain."""
    found = gain_kept([0] * 500, [1] + [0] * 499, [0] * 500)
    assert found.kept is None
    assert found.holds(0.97)


def test_without_a_gain_a_bundle_that_is_worse_does_not_hold() -> None:
    found = gain_kept([1, 0] * 50, [1, 0] * 50, [0] * 100)
    assert found.kept is None
    assert found.is_worse
    assert not found.holds(0.0)


def test_a_gain_holds_from_the_floor_on() -> None:
    found = gain_kept([0] * 40, [1] * 20 + [0] * 20, [1] * 10 + [0] * 30)
    assert found.holds(0.5)
    assert not found.holds(0.51)
