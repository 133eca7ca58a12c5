"""The order of the data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgetune.train.batches import Order, cut, in_parts, packed_rows, share

TOKENS = [SimpleNamespace(input_ids=[1] * n, labels=[1] * n) for n in (9, 3, 17, 5, 30, 2, 11, 8, 4, 6, 21, 13)]


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_has_every_sample_once_and_no_row_that_is_too_long(packing):
    rows = Order(32, packing, seed=1).epoch(TOKENS, 0)
    assert sorted(index for row in rows for index in row) == list(range(len(TOKENS)))
    assert all(sum(len(TOKENS[index].input_ids) for index in row) <= 32 for row in rows)
    assert packing or all(len(row) == 1 for row in rows)


def test_the_order_follows_from_seed_and_epoch():
    order = Order(32, True, seed=1)
    assert order.epoch(TOKENS, 0) == Order(32, True, seed=1).epoch(TOKENS, 0)
    assert order.epoch(TOKENS, 0) != order.epoch(TOKENS, 1)
    assert order.epoch(TOKENS, 0) != Order(32, True, seed=2).epoch(TOKENS, 0)


def test_evaluation_has_one_order():
    assert packed_rows(TOKENS, max_seq_len=32) == packed_rows(TOKENS, max_seq_len=32)


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_however_a_step_is_cut_its_rows_are_trained_once_each(size, count, pieces):
    rows = list(range(19))
    micro_batches = in_parts(rows, size)
    assert [row for batch in micro_batches for row in batch] == rows
    assert max(map(len, micro_batches)) == size
    mine = [cut(share(micro_batches, rank, count), pieces) for rank in range(count)]
    assert sorted(row for batches in mine for batch in batches for row in batch) == rows
