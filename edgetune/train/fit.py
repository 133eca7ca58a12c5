"""The one loop of optimizer steps, of training, repair and the search for a learning rate. It knows no folder.

In the flow: rows of an epoch -> the rows of a step -> micro-batches -> gradients -> optimizer step -> the caller, who
evaluates, saves or ends it. A place in the data is counted in rows, and a step has the rows that it has: cut into
other micro-batches, for less memory or for more processes, they give the same gradients in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgetune.model.memory import give_back_memory, is_out_of_memory
from edgetune.train import processes
from edgetune.train.batches import cut, in_parts, share
from edgetune.train.divergence import Diverged


class Batch(Protocol):
    """One micro-batch, on some device."""

    @property
    def trained(self) -> int:
        """What the summed loss sums over: trained tokens, or texts."""

    @property
    def read(self) -> int:
        """Tokens, padding aside."""

    def to(self, device: Any) -> Any:
        """The same batch on a device."""


class Data(Protocol):
    """Rows, and the loss of some of them."""

    def epoch(self, number: int) -> list[Any]:
        """All rows of an epoch, from 0, in its order; the same for the same number."""

    def collate(self, rows: Any) -> Batch:
        """The batch of some rows of an epoch."""

    def loss_sum(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Summed loss in nats, a float32 scalar with gradient, and what it sums over."""


@dataclass
class Position:
    """Where a training stands after an optimizer step."""

    step: int = 0
    epoch: int = 0
    used_rows: int = 0
    """Rows of this epoch that were used."""
    pieces: int = 1
    """Into how many a micro-batch is cut, since memory ran out; 1: it never has."""

    @property
    def rate_share(self) -> float:
        """What is left of the schedule's learning rate."""
        return 1.0


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and how far."""

    model: Any
    trained: Sequence[nn.Parameter]
    optimizer: Any
    data: Data
    steps: int
    batch_size: int
    """Rows in a micro-batch."""
    accumulation: int
    """Micro-batches in a step, all processes together."""
    learning_rate: Callable[[int], float]
    """Of optimizer step 1..steps; a parameter group's `share` multiplies it."""
    max_grad_norm: float = 1.0
    seed: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Around each forward pass."""
    backward: Callable[[Tensor], Any] = Tensor.backward
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_

    @property
    def step_rows(self) -> int:
        """Rows in a step: fewer only at the end of an epoch, which no step goes across."""
        return self.batch_size * self.accumulation


@dataclass(frozen=True)
class Step:
    """An optimizer step that was made, in figures of all processes together."""

    number: int
    loss: float
    """Mean, in nats per trained token (or text), before the step."""
    trained: int
    """Tokens (or texts) that the loss is the mean of."""
    read: int
    """Tokens, padding aside."""
    learning_rate: float
    wall_s: float
    was_cut: bool
    """Memory ran out: micro-batches are smaller from this step on."""


def fit(training: Training, position: Position) -> Iterator[Step]:
    """Make the steps that are left, each when it is asked for; `position` moves on with them.

    Raises Diverged, before the optimizer's step, where the loss is no number, and what torch raises where not even a
    row a time fits the memory.
    """
    rows = rows_of_steps(training.data, training.step_rows, position.epoch, position.used_rows)
    while position.step < training.steps:
        started, pieces, number = time.perf_counter(), position.pieces, position.step + 1
        epoch, used_rows, taken = next(rows)
        processes.draw_apart(training.seed, number)
        rate = training.learning_rate(number) * position.rate_share
        loss, trained, read = make_step(training, position, taken, rate)
        position.step, position.epoch, position.used_rows = number, epoch, used_rows
        was_cut = position.pieces > pieces
        yield Step(number, loss, trained, read, rate, time.perf_counter() - started, was_cut)


def rows_of_steps(data: Data, size: int, epoch: int, used_rows: int) -> Iterator[tuple[int, int, list[Any]]]:
    """Rows of one step after another, without end, from a place on; with each the place (epoch, rows used) after it."""
    while True:
        rows = data.epoch(epoch)
        for start in range(used_rows, len(rows), size):
            is_last = start + size >= len(rows)
            yield epoch + is_last, 0 if is_last else start + size, rows[start : start + size]
        epoch, used_rows = epoch + 1, 0


def make_step(training: Training, position: Position, rows: list[Any], learning_rate: float) -> tuple[float, int, int]:
    """One optimizer step over rows: mean loss (nats), trained tokens (or texts), tokens read.

    Each micro-batch's summed loss is divided by the trained tokens of the whole step, on all processes, so that the
    gradient is that of one batch of them all, however unequal they are, and however they are cut.
    """
    mine = share(in_parts(rows, training.batch_size), processes.rank(), processes.count())
    batches = [training.data.collate(part) for part in cut(mine, position.pieces)]
    counts = processes.gathered((sum(batch.trained for batch in batches), sum(batch.read for batch in batches)))
    trained, read = (sum(numbers) for numbers in zip(*counts, strict=True))
    total = None
    while total is None:
        try:
            total = _add_gradients(training, batches, trained)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or position.pieces >= max(map(len, mine)):
                raise
        if total is None:  # only here, without the exception, what it held is free
            position.pieces *= 2
            training.optimizer.zero_grad(set_to_none=True)
            give_back_memory()
            batches = [training.data.collate(part) for part in cut(mine, position.pieces)]
    totals, pieces = zip(*processes.gathered((float(total), position.pieces)), strict=True)
    position.pieces = max(pieces)  # memory may have run out in another process
    _sum_gradients(training.trained)
    mean = sum(totals)
    if not math.isfinite(mean):
        raise Diverged(position.step + 1, f"the loss is {mean}")
    training.clip(training.trained, training.max_grad_norm)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return mean, trained, read


def _add_gradients(training: Training, batches: Sequence[Batch], trained: int) -> Tensor:
    """Forward and backward pass of this process's batches: their share of the step's mean loss."""
    total = torch.zeros((), device=training.model.device)
    for batch in batches:
        with training.autocast():
            loss, _ = training.data.loss_sum(training.model, batch.to(training.model.device))
        loss = loss / max(trained, 1)
        training.backward(loss)
        total += loss.detach()
    return total


def _sum_gradients(trained: Sequence[nn.Parameter]) -> None:
    """Gradients summed over processes; the adapter is small, so that no wrapper has to hide the exchange."""
    if processes.count() == 1:
        return
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.sum_tensors([parameter.grad for parameter in trained if parameter.grad is not None])
