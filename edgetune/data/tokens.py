"""Tokenised rows on disk: flat arrays that are memory-mapped, so that memory does not grow with the data."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.data.encode import Encoded
from edgetune.hashes import hash_values


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

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (rows,)."""
        return np.diff(self.offsets)


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


def _paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}-ids.bin"), path.with_name(f"{path.name}-labels.bin")
