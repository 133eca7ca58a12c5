"""train/task.py: the stream of micro-batches that the loop draws from."""

from itertools import islice
from types import SimpleNamespace

from edgetune.train.batches import Order
from edgetune.train.task import stream

TOKENS = [SimpleNamespace(input_ids=[1] * n, labels=[1] * n) for n in (9, 3, 17, 5, 30, 2, 11, 8, 4, 6, 21, 13)]


def test_the_stream_goes_on_from_any_position_as_if_it_had_not_stopped():
    order = Order(32, 1, True, seed=3)
    task = SimpleNamespace(epoch=lambda number: order.epoch(TOKENS, number))
    whole = list(islice(stream(task, 0, 0), 20))
    epoch, offset, _ = whole[6]
    assert list(islice(stream(task, epoch, offset), 13)) == whole[7:]
