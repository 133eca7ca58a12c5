"""The one table: what a run is worth. As aligned text, Markdown, and JSON-able values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.metric_names import METRIC_NAMES
from edgetune.text_table import aligned

MIB = 1024**2
SCORE_NAMES = {**METRIC_NAMES, "loss": "score"}
"""Above the column of scores, which a loss leaves empty."""


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
    is_timed = any(row.latency_s is not None for row in rows)
    speed = "one text" if is_timed else "tokens/s"
    header = ["model", SCORE_NAMES[metric], "interval", "loss", "on disk", "peak memory", speed]
    return [header, *([*_cells(row), _latency(row) if is_timed else _speed(row)] for row in rows)]


def _cells(row: TableRow) -> list[str]:
    low, high = row.interval or (0.0, 0.0)
    return [
        row.name,
        "-" if row.score is None else f"{row.score:.1%}",
        "-" if row.interval is None else f"{low:.1%} to {high:.1%}",
        f"{row.loss:.4f}",
        _mib(row.disk_bytes),
        _mib(row.peak_bytes),
    ]


def _latency(row: TableRow) -> str:
    return "-" if row.latency_s is None else f"{row.latency_s * 1000:.1f} ms"


def _speed(row: TableRow) -> str:
    return "-" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"


def _mib(size_bytes: int) -> str:
    mib = size_bytes / MIB
    return f"{mib:,.0f} MiB" if mib >= 100 else f"{mib:.1f} MiB"
