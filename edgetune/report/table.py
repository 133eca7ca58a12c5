"""The one table: what a run is worth. As aligned text, Markdown, and JSON-able values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TableRow:
    """One measured model. Shares in 0..1, loss in nats per trained token, sizes in bytes."""

    name: str
    score: float | None
    interval: tuple[float, float] | None
    loss: float
    disk_bytes: int
    peak_bytes: int
    tokens_per_s: float | None


def plain(rows: Sequence[TableRow], *, metric: str) -> str:
    """The table as aligned text, for a terminal."""
    ...


def markdown(rows: Sequence[TableRow], *, metric: str) -> str:
    """The table as GitHub Markdown, for a README."""
    ...


def values(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """The table as JSON-able values, units in the keys."""
    ...
