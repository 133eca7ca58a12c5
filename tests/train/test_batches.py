"""The order of the data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgetune.train.batches import Order, micro_batches

TOKENS = [SimpleNamespace(input_ids=[1] * n, labels=[1] * n) for n in (9, 3, 17, 5, 30, 2, 11, 8, 4, 6, 21, 13)]


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_has_every_sample_once_and_no_row_that_is_too_long(packing):
    batches = Order(32, 2, packing, seed=1).epoch(TOKENS, 0)
    rows = [row for batch in batches for row in batch]
    assert sorted(index for row in rows for index in row) == list(range(len(TOKENS)))
    assert all(sum(len(TOKENS[index].input_ids) for index in row) <= 32 for row in rows)
    assert all(len(batch) <= 2 for batch in batches)
    assert packing or all(len(row) == 1 for row in rows)


def test_the_order_follows_from_seed_and_epoch():
    order = Order(32, 2, True, seed=1)
    assert order.epoch(TOKENS, 0) == Order(32, 2, True, seed=1).epoch(TOKENS, 0)
    assert order.epoch(TOKENS, 0) != order.epoch(TOKENS, 1)
    assert order.epoch(TOKENS, 0) != Order(32, 2, True, seed=2).epoch(TOKENS, 0)


def test_evaluation_has_one_order():
    assert micro_batches(TOKENS, max_seq_len=32, batch_size=2) == micro_batches(TOKENS, max_seq_len=32, batch_size=2)
