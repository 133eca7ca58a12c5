"""The one table: what a run is worth. As aligned text, Markdown, and JSON-able values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.report.columns import Column, column
from edgetune.text_table import aligned


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
    latency_s: float | None = None


def plain(rows: Sequence[TableRow], *, metric: str) -> str:
    """The table as aligned text, for a terminal."""
    return aligned(_lines(rows, metric))


def markdown(rows: Sequence[TableRow], *, metric: str) -> str:
    """The table as GitHub Markdown, for a README."""
    header, *cells = _lines(rows, metric)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def values(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """The table as JSON-able values, units in the keys."""
    return [dataclasses.asdict(row) for row in rows]


def _lines(rows: Sequence[TableRow], metric: str) -> list[list[str]]:
    """Header and cells; how fast a model is in the time of a text where that was measured, else in tokens/s."""
    speed = "latency_s" if any(row.latency_s is not None for row in rows) else "tokens_per_s"
    score, *others = (column(key) for key in (f"score.{metric}", "loss", "disk_bytes", "peak_bytes", speed))
    header = ["model", score.title, "interval", *(item.title for item in others)]
    return [header, *(_cells(row, score, others) for row in rows)]


def _cells(row: TableRow, score: Column, others: Sequence[Column]) -> list[str]:
    interval = "-" if row.interval is None else " to ".join(score.form(bound) for bound in row.interval)
    return [row.name, _cell(score, row.score), interval, *(_cell(item, getattr(row, item.key)) for item in others)]


def _cell(shown: Column, value: float | None) -> str:
    return "-" if value is None else shown.form(value)
