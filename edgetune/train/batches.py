"""The order of the data: which samples share a packed row, which rows a micro-batch, epoch after epoch.

In the flow: tokenised rows -> seeded order -> packed rows -> micro-batches. All of it follows from the seed and the
epoch, so that a position in a run is two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune.data.pack import Batch, collate, pack

Rows = list[list[int]]
"""One micro-batch: for each row the indices of the samples packed into it."""


@dataclass(frozen=True)
class Order:
    """What decides the order of the data, beside the data."""

    max_seq_len: int
    batch_size: int
    packing: bool
    seed: int

    def epoch(self, tokens: Any, epoch: int) -> list[Rows]:
        """All micro-batches of an epoch, from 0. The last may be smaller."""
        generator = np.random.default_rng([self.seed, epoch])
        return micro_batches(
            tokens,
            max_seq_len=self.max_seq_len,
            batch_size=self.batch_size,
            is_packed=self.packing,
            generator=generator,
        )


def micro_batches(
    tokens: Any,
    *,
    max_seq_len: int,
    batch_size: int,
    is_packed: bool = True,
    generator: np.random.Generator | None = None,
) -> list[Rows]:
    """Samples packed into rows of at most max_seq_len tokens, rows into micro-batches; shuffled by `generator`."""
    lengths = sample_lengths(tokens)
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    if is_packed:
        packed = pack([_Length(int(lengths[index])) for index in order], max_seq_len=max_seq_len)
        rows = [[int(order[place]) for place in row] for row in packed]
    else:
        rows = [[int(index)] for index in order]
    if generator is not None:
        rows = [rows[place] for place in generator.permutation(len(rows))]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def cut(micro_batches: Sequence[Any], pieces: int) -> list[Any]:
    """Each micro-batch, a list of rows, cut into so many pieces or as many as it has rows."""
    sizes = [math.ceil(len(rows) / pieces) for rows in micro_batches]
    return [
        rows[at : at + size]
        for rows, size in zip(micro_batches, sizes, strict=True)
        for at in range(0, len(rows), size)
    ]


def share(micro_batches: Sequence[Any], rank: int, count: int) -> list[Any]:
    """What one of `count` processes trains on of the micro-batches of a step: together they have each row once.

    Micro-batches are cut only where that many processes could not have equally many.
    """
    return cut(micro_batches, count // math.gcd(len(micro_batches), count))[rank::count]


def sample_lengths(tokens: Any) -> np.ndarray:
    """Length in tokens of each sample, (len(tokens),) int64."""
    lengths = getattr(tokens, "lengths", None)
    if lengths is not None:
        return np.asarray(lengths() if callable(lengths) else lengths)
    return np.array([len(tokens[index].input_ids) for index in range(len(tokens))], dtype=np.int64)


def collate_rows(tokens: Any, rows: Rows, *, pad_id: int) -> Batch:
    """The packed batch of these rows: input_ids, labels, position_ids, segment_ids, each (B, T)."""
    return collate([[tokens[index] for index in row] for row in rows], pad_id=pad_id)


@dataclass(frozen=True)
class _Length:
    """A sample as `pack` sees it: something whose input_ids have a length."""

    length: int

    @property
    def input_ids(self) -> Sequence[int]:
        return range(self.length)
