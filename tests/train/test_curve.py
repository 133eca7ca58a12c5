"""The average that a loss curve shows."""

import pytest

from edgetune.train.curve import moving_average


def test_the_average_starts_at_the_first_value_and_follows_the_newer_ones_more() -> None:
    assert moving_average([1.0, 0.0, 0.0], kept=0.5) == pytest.approx([1.0, 1 / 3, 1 / 7])


def test_the_average_of_equal_values_is_that_value_however_slowly_it_moves() -> None:
    assert moving_average([2.5] * 20, kept=0.95) == pytest.approx([2.5] * 20)


def test_nothing_has_no_average() -> None:
    assert moving_average([], kept=0.8) == []
