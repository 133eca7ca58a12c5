"""Tokenised rows on disk: flat arrays that are memory-mapped, so that memory does not grow with the data."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgetune.data.encode import Encoded
from edgetune.hashes import hash_values

COUNTED_ROWS = 1024
"""Rows whose sets of labels are unpacked at once."""


@dataclass(frozen=True)
class Tokens:
    """Tokenised rows, read from disk as they are asked for. len() rows; each is an Encoded."""

    ids: np.ndarray
    """int32 (all tokens,)."""
    labels: np.ndarray
    """int32 (all tokens,), -100 where the loss does not count."""
    offsets: np.ndarray
    """int64 (rows + 1,)."""
    fingerprint: str
    """Equal for equal rows."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, stop = self.offsets[index], self.offsets[index + 1]
        return Encoded(self.ids[start:stop].tolist(), self.labels[start:stop].tolist(), f"row {index}")

    def first(self, rows: int) -> Tokens:
        """At most the first so many rows."""
        return self if rows >= len(self) else dataclasses.replace(self, offsets=self.offsets[: rows + 1])

    def at(self, places: Sequence[int]) -> Tokens:
        """The rows at these places, in this order, in memory."""
        spans = [slice(self.offsets[place], self.offsets[place + 1]) for place in places]
        nothing = np.empty(0, np.int32)
        return Tokens(
            ids=np.concatenate([nothing, *(self.ids[span] for span in spans)]),
            labels=np.concatenate([nothing, *(self.labels[span] for span in spans)]),
            offsets=np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])]).astype(np.int64),
            fingerprint=hash_values(self.fingerprint, list(places)),
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (rows,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class LabelledTokens:
    """Tokenised texts with their targets, memory-mapped. len() rows."""

    tokens: Tokens
    targets: np.ndarray
    """int64 (rows,): the number of the label; of multi-label rows uint8 (rows, ceil(labels / 8)), bits of a set."""
    labels: int

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, places: Sequence[int]) -> LabelledTokens:
        """The rows at these places, in this order, in memory."""
        return LabelledTokens(self.tokens.at(places), np.asarray(self.targets[list(places)]), self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 (rows,)."""
        return self.tokens.lengths

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows and targets."""
        return self.tokens.fingerprint

    def target(self, rows: Sequence[int]) -> Tensor:
        """int64 (rows,), or float32 (rows, labels) of zeros and ones."""
        chosen = np.asarray(self.targets[list(rows)])
        if chosen.ndim == 1:
            return torch.from_numpy(chosen)
        return torch.from_numpy(np.unpackbits(chosen, axis=1, count=self.labels).astype(np.float32))

    def counts(self) -> np.ndarray:
        """Rows of each label, int64 (labels,)."""
        if self.targets.ndim == 1:
            return np.bincount(self.targets, minlength=self.labels)
        total = np.zeros(self.labels, np.int64)
        for start in range(0, len(self), COUNTED_ROWS):
            total += self.target(range(start, min(start + COUNTED_ROWS, len(self)))).sum(0).long().numpy()
        return total


def write_tokens(rows: Iterable[Encoded], path: Path) -> int:
    """Write <path>-ids.bin and -labels.bin (int32, flat) and -offsets.npy as rows come; how many came."""
    offsets = array("q", [0])
    ids_path, labels_path = _paths(path)
    with ids_path.open("wb") as ids, labels_path.open("wb") as labels:
        for row in rows:
            ids.write(np.asarray(row.input_ids, dtype=np.int32).tobytes())
            labels.write(np.asarray(row.labels, dtype=np.int32).tobytes())
            offsets.append(offsets[-1] + len(row.input_ids))
    np.save(path.with_name(f"{path.name}-offsets.npy"), np.asarray(offsets, dtype=np.int64))
    return len(offsets) - 1


def open_tokens(path: Path, key: str) -> Tokens:
    """The rows that `write_tokens` wrote; `key` identifies what they were made from."""
    offsets = np.load(path.with_name(f"{path.name}-offsets.npy"))
    if offsets[-1] == 0:  # an empty file cannot be mapped
        ids = labels = np.empty(0, np.int32)
    else:
        ids, labels = (np.memmap(file, dtype=np.int32, mode="r") for file in _paths(path))
    return Tokens(ids, labels, offsets, hash_values(key, path.name))


def write_labelled(batches: Iterable[tuple[Sequence[Encoded], np.ndarray]], path: Path) -> int:
    """Write the files of `write_tokens` and <path>-targets.npy; how many rows came.

    Batches of rows and their targets come one after another: int64 (rows,), or bool (rows, labels).
    """
    targets: list[np.ndarray] = []

    def rows() -> Iterator[Encoded]:
        for batch, found in batches:
            targets.append(np.packbits(found, axis=1) if found.ndim > 1 else found)
            yield from batch

    count = write_tokens(rows(), path)
    if count:
        np.save(_targets_path(path), np.concatenate(targets))
    return count


def open_labelled(path: Path, key: str, *, labels: int) -> LabelledTokens:
    """The rows that `write_labelled` wrote, with so many labels; `key` identifies what they were made from."""
    return LabelledTokens(open_tokens(path, key), np.load(_targets_path(path), mmap_mode="r"), labels)


def _paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}-ids.bin"), path.with_name(f"{path.name}-labels.bin")


def _targets_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-targets.npy")
