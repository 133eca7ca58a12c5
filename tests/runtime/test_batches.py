"""Rows of like length together, padded."""

import numpy as np
import pytest

from edgetune.runtime.batches import by_length, padded


def test_rows_go_by_length_and_those_of_one_length_in_their_order() -> None:
    lengths = [5, 2, 9, 2, 5]
    assert by_length(lengths, most_rows=2) == [[1, 3], [0, 4], [2]]
    assert by_length(lengths, most_rows=2, longest_first=True) == [[2, 0], [4, 1], [3]]
    assert by_length(lengths) == [[1, 3, 0, 4, 2]]


def test_a_batch_holds_so_many_tokens_with_its_padding() -> None:
    assert by_length([3, 4, 1, 2], most_tokens=6) == [[2, 3], [0], [1]]
    assert by_length([3, 4, 1, 2], most_tokens=8, longest_first=True) == [[1, 0], [3, 2]]


def test_a_row_longer_than_a_batch_stands_alone() -> None:
    assert by_length([50, 1, 40], most_tokens=10) == [[1], [2], [0]]


def test_no_rows_make_no_batch() -> None:
    assert by_length([]) == []


@pytest.mark.parametrize("longest_first", [False, True])
def test_every_row_is_in_one_batch_and_none_is_too_large(longest_first: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    batches = by_length(lengths, most_rows=16, most_tokens=200, longest_first=longest_first)
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    assert all(len(batch) <= 16 for batch in batches)
    assert all(len(batch) * lengths[batch].max() <= 200 for batch in batches)
    inside = [lengths[row] for batch in batches for row in batch]
    assert inside == sorted(inside, reverse=longest_first)


def test_rows_are_filled_up_to_the_longest() -> None:
    ids, mask = padded([[7, 8, 9], [5]], pad_id=1)
    assert ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_prompts_to_go_on_from_are_filled_up_on_the_left() -> None:
    ids, mask = padded([[7, 8, 9], [5], []], on_the_left=True)
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_no_rows_are_an_empty_array() -> None:
    assert [part.shape for part in padded([])] == [(0, 0), (0, 0)]
