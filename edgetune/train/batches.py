"""The order of the data: which samples share a packed row, and which row follows which, epoch after epoch.

In the flow: tokenised rows -> seeded order -> packed rows -> micro-batches. All of it follows from the seed and the
epoch, so that a place in a run is two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgetune.data.pack import Batch, collate, pack

Row = list[int]
"""The indices of the samples packed into one row."""
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What decides the order of the data, beside the data."""

    max_seq_len: int
    packing: bool
    seed: int

    def epoch(self, tokens: Any, epoch: int) -> list[Row]:
        """All rows of an epoch, from 0."""
        generator = np.random.default_rng([self.seed, epoch])
        return packed_rows(tokens, max_seq_len=self.max_seq_len, is_packed=self.packing, generator=generator)


def packed_rows(
    tokens: Any, *, max_seq_len: int, is_packed: bool = True, generator: np.random.Generator | None = None
) -> list[Row]:
    """Samples packed into rows of at most max_seq_len tokens; shuffled by `generator`, before and after."""
    lengths = sample_lengths(tokens)
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    if is_packed:
        packed = pack([_Length(int(lengths[index])) for index in order], max_seq_len=max_seq_len)
        rows = [[int(order[place]) for place in row] for row in packed]
    else:
        rows = [[int(index)] for index in order]
    return rows if generator is None else [rows[place] for place in generator.permutation(len(rows))]


def in_parts(rows: list[T], size: int) -> list[list[T]]:
    """Rows in their order, so many at a time; the last part may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def cut(micro_batches: Sequence[list[T]], pieces: int) -> list[list[T]]:
    """Each micro-batch cut into so many pieces or as many as it has rows."""
    return [part for rows in micro_batches for part in in_parts(rows, math.ceil(len(rows) / pieces))]


def share(micro_batches: Sequence[list[T]], rank: int, count: int) -> list[list[T]]:
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


def collate_rows(tokens: Any, rows: Sequence[Row], *, pad_id: int) -> Batch:
    """The packed batch of these rows: input_ids, labels, position_ids, segment_ids, each (B, T)."""
    return collate([[tokens[index] for index in row] for row in rows], pad_id=pad_id)


@dataclass(frozen=True)
class _Length:
    """A sample as `pack` sees it: something whose input_ids have a length."""

    length: int

    @property
    def input_ids(self) -> Sequence[int]:
        return range(self.length)
