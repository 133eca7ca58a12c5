"""Encoded rows -> packed batches whose samples cannot see each other. Last step of the data flow.

A packed row holds several samples one after another; positions start again at each, and segment ids say who is who.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.data.encode import NOT_TRAINED


@dataclass(frozen=True)
class Batch:
    """Packed rows, each tensor (B, T), int64. Labels are not shifted; segment 0 is padding, samples count from 1."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels[:, 1:] != NOT_TRAINED).sum())

    @property
    def read(self) -> int:
        """Tokens, padding aside."""
        return int((self.segment_ids > 0).sum())

    def to(self, device: Any) -> Batch:
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


def pack(encoded: Sequence[Any], *, max_seq_len: int) -> list[list[int]]:
    """Which samples share a row: lists of indices, each row at most max_seq_len tokens. Best-fit decreasing.

    The same samples in the same order give the same rows; samples of equal length go in the order they come.
    """
    lengths = [len(sample.input_ids) for sample in encoded]
    rows: list[list[int]] = []
    rooms: list[int] = []
    rows_with_room: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect.bisect_left(rooms, lengths[index])
        if place == len(rooms):
            room, row = max_seq_len, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room]
                rooms.pop(place)
        rows[row].append(index)
        left = room - lengths[index]
        if left > 0:
            if left not in rows_with_room:
                bisect.insort(rooms, left)
            rows_with_room.setdefault(left, []).append(row)
    return rows


def collate(rows: Sequence[Sequence[Any]], *, pad_id: int, length: int | None = None) -> Batch:
    """Rows of encoded samples as one batch, padded to `length`, or to the longest row rounded up to a multiple of 8.

    No sample is a target of the one before it: the label of each first token is -100.
    """
    longest = max((sum(len(sample.input_ids) for sample in row) for row in rows), default=0)
    width = length or max(8, -(-longest // 8) * 8)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, NOT_TRAINED, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment_ids = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for segment, sample in enumerate(row, start=1):
            stop = start + len(sample.input_ids)
            input_ids[number, start:stop] = torch.as_tensor(sample.input_ids, dtype=torch.long)
            labels[number, start + 1 : stop] = torch.as_tensor(sample.labels, dtype=torch.long)[1:]
            position_ids[number, start:stop] = torch.arange(stop - start)
            segment_ids[number, start:stop] = segment
            start = stop
    return Batch(input_ids, labels, position_ids, segment_ids)


def attention_mask(segment_ids: Tensor, dtype: torch.dtype = torch.bool) -> Tensor:
    """segment_ids (B, T) -> (B, 1, T, T): who may look at whom. True or 0 where allowed, else False or the least value.

    Causal within a sample; padding looks at padding, so that no row of the softmax is empty.
    """
    length = segment_ids.shape[1]
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    allowed = same & torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    if dtype == torch.bool:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
