"""train/fit.py: rows of steps, and steps that are the same however their rows are cut."""

from __future__ import annotations

import dataclasses
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgetune.train.batches import Order
from edgetune.train.divergence import Diverged
from edgetune.train.fit import Position, Training, fit, rows_of_steps

TOKENS = [SimpleNamespace(input_ids=[1] * n, labels=[1] * n) for n in (9, 3, 17, 5, 30, 2, 11, 8, 4, 6, 21, 13)]

FLOAT32 = 1e-6
"""Losses are reported in float32, whose eight additions of a step round by at most 8 * 2**-24 of the sum."""


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_rows_go_on_from_any_place_as_if_they_had_not_stopped(size):
    order = Order(32, True, seed=3)
    data = SimpleNamespace(epoch=lambda number: order.epoch(TOKENS, number))
    whole = list(islice(rows_of_steps(data, size, 0, 0), 20))
    for step in (0, 3, 6):
        epoch, used_rows, _ = whole[step]
        assert list(islice(rows_of_steps(data, size, epoch, used_rows), 13)) == whole[step + 1 : step + 14]


def test_a_step_stays_in_its_epoch_and_an_epoch_has_every_row_once():
    data = SimpleNamespace(epoch=lambda number: [(number, row) for row in range(7)])
    steps = [rows for _, _, rows in islice(rows_of_steps(data, 3, 0, 0), 6)]
    assert [len(rows) for rows in steps] == [3, 3, 1, 3, 3, 1]
    assert [row for rows in steps for row in rows] == [(epoch, row) for epoch in (0, 1) for row in range(7)]


@dataclasses.dataclass
class Numbers:
    """A batch of inputs and wanted outputs."""

    x: torch.Tensor
    y: torch.Tensor

    @property
    def trained(self):
        return len(self.x)

    @property
    def read(self):
        return 2 * len(self.x)

    def to(self, _):
        return self


@dataclasses.dataclass
class Line:
    """Rows on a line, in an order of their own in each epoch; remembers which it was asked for."""

    rows: int = 22
    seen: list = dataclasses.field(default_factory=list)
    most_rows: int = 1000
    """More at once are out of memory."""

    def epoch(self, number):
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(number)).tolist()

    def collate(self, rows):
        self.seen.append(list(rows))
        x = torch.tensor([[row / self.rows] for row in rows], dtype=torch.float64)
        return Numbers(x, 3 * x + 1)

    def loss_sum(self, model, batch):
        if len(batch.x) > self.most_rows:
            raise torch.OutOfMemoryError("out of memory")
        return (model(batch.x) - batch.y).square().sum(), len(batch.x)


def line_training(data, **changes):
    torch.manual_seed(0)
    model = nn.Linear(1, 1).double()
    model.device = torch.device("cpu")
    values = {"steps": 30, "batch_size": 4, "accumulation": 2, "learning_rate": lambda step: 0.5 / step, **changes}
    trained = list(model.parameters())
    return Training(model=model, trained=trained, optimizer=torch.optim.SGD(trained, lr=1.0), data=data, **values)


def weights(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.trained])


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_a_step_is_the_same_in_other_micro_batches_in_loss_order_and_outcome(batch_size, accumulation):
    runs = []
    for size, count in ((4, 2), (batch_size, accumulation)):
        data = Line()
        training = line_training(data, batch_size=size, accumulation=count)
        steps = list(fit(training, Position()))
        runs.append((steps, [row for rows in data.seen for row in rows], weights(training)))
    (one, order, last), (other, its_order, its_last) = runs
    assert order == its_order
    assert [step.loss for step in one] == pytest.approx([step.loss for step in other], rel=FLOAT32)
    assert one[-1].loss < 0.1 * one[0].loss
    assert [(step.trained, step.read) for step in one[:4]] == [(8, 16), (8, 16), (6, 12), (8, 16)]
    torch.testing.assert_close(last, its_last)


def test_a_training_goes_on_in_smaller_micro_batches_from_where_it_stood():
    whole, first = line_training(Line()), line_training(Line(), steps=11)
    list(fit(whole, Position()))
    position = Position()
    list(fit(first, position))
    second = line_training(Line(), batch_size=1, accumulation=8)
    for parameter, value in zip(second.trained, first.trained, strict=True):
        parameter.data.copy_(value)
    assert [step.number for step in fit(second, dataclasses.replace(position))] == list(range(12, 31))
    torch.testing.assert_close(weights(whole), weights(second))


def test_out_of_memory_cuts_the_micro_batch_and_nothing_else():
    whole = line_training(Line())
    expected = [step.loss for step in fit(whole, Position())]
    small = line_training(Line(most_rows=1))
    position = Position()
    steps = list(fit(small, position))
    assert [step.loss for step in steps] == pytest.approx(expected, rel=FLOAT32)
    assert [step.was_cut for step in steps] == [True, *[False] * 29]
    assert position.pieces == 4
    with pytest.raises(torch.OutOfMemoryError):
        next(fit(line_training(Line(most_rows=0)), Position()))


def test_steps_are_made_only_when_they_are_asked_for():
    training, position = line_training(Line()), Position()
    before = weights(training)
    steps = fit(training, position)
    assert (position.step, weights(training).equal(before)) == (0, True)
    next(steps)
    assert (position.step, position.used_rows, weights(training).equal(before)) == (1, 8, False)


def test_a_loss_that_is_no_number_changes_no_weight():
    training = line_training(Line())
    training.trained[0].data.fill_(float("inf"))
    before = weights(training)
    with pytest.raises(Diverged, match="step 1: the loss is"):
        next(fit(training, Position()))
    assert weights(training).equal(before)


def test_the_rate_is_the_schedule_s_share_of_what_is_left_for_each_group():
    class Halved(Position):
        rate_share = 0.5

    training = line_training(Line(), steps=2)
    training.optimizer.param_groups[0]["share"] = 10.0
    rates = [(step.learning_rate, training.optimizer.param_groups[0]["lr"]) for step in fit(training, Halved())]
    assert rates == [(0.25, 2.5), (0.125, 1.25)]
