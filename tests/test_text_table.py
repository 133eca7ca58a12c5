"""Aligned text."""

import pytest

from edgetune.text_table import aligned


def test_the_first_column_stands_at_the_left_and_numbers_end_below_each_other() -> None:
    lines = [["model", "loss", "on disk"], ["base", "2.5000", "9 MiB"], ["the bundle", "-", "10.5 MiB"]]
    assert aligned(lines).splitlines() == [
        "model         loss   on disk",
        "base        2.5000     9 MiB",
        "the bundle       -  10.5 MiB",
    ]


def test_no_line_ends_with_blanks() -> None:
    assert aligned([["a", "b"], ["longer", ""]]) == "a       b\nlonger"


def test_lines_of_different_lengths_are_no_table() -> None:
    with pytest.raises(ValueError, match="zip"):
        aligned([["a", "b"], ["c"]])
