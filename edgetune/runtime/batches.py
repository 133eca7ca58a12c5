"""Rows of different lengths as batches that waste little: rows of like length together, padded to the longest of them.

For the device and for all that passes rows through a model: which rows are computed together is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def by_length(
    lengths: Iterable[int], *, most_rows: float = math.inf, most_tokens: float = math.inf, longest_first: bool = False
) -> list[list[int]]:
    """The numbers of all rows in batches, the shortest rows first; rows of the same length stay in their order.

    lengths (N,) in tokens. A batch has at most `most_rows` rows and at most `most_tokens` tokens, padding included; a
    row that is longer than that is a batch of its own.
    """
    sizes = [int(length) for length in lengths]
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row] if longest_first else sizes[row]):
        longest = max(sizes[row], sizes[batch[0]]) if batch else sizes[row]
        if batch and (len(batch) >= most_rows or (len(batch) + 1) * longest > most_tokens):
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches


def padded(
    rows: Sequence[Sequence[int]], *, pad_id: int = 0, on_the_left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """B rows of token ids -> ids and mask, each (B, T) int64, T the longest row; the mask is 1 for tokens, else 0."""
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if on_the_left else slice(len(row))
        ids[number, place] = row
        mask[number, place] = 1
    return ids, mask
