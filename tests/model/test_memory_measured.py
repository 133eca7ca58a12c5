"""The planner as it is now against what was measured: benchmarks/results/planner.json and gpu.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, planner
from benchmarks.readme import RESULTS

TOLD = ("shape", "planned_mib", "parts_mib", *planner.MEASURED)
"""What a row of planner.json has beside the keys of its recipe."""


def _near(rows: list[dict[str, Any]]) -> int:
    """How many are planned within 10 % of what was measured."""
    return sum(abs(row["planned_mib"] / row["peak_mib"] - 1) <= 0.1 for row in rows)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_on_a_cpu_the_planner_is_near_each_measured_peak(tmp_path: Path) -> None:
    rows = _read("planner")["rows"]
    assert len(rows) >= 24
    for row in rows:
        keys = {key: value for key, value in row.items() if key not in TOLD}
        planned = planner.predicted(row["shape"], keys | {"model.compute_dtype": "float32"}, tmp_path)
        assert planned.peak_bytes / planner.MIB == pytest.approx(
            row["planned_mib"], abs=0.1
        )  # the pages are up to date
        assert planned.peak_bytes / planner.MIB >= 0.95 * row["peak_mib"]
    assert _near(rows) >= 0.9 * len(rows)


def test_on_a_gpu_the_planner_is_near_each_measured_peak() -> None:
    report = gpu.predicted_again(_read("gpu"))
    rows = report["headlines"] + report["planner"]
    assert len(rows) >= 24
    assert min(row["planned_mib"] / row["peak_mib"] for row in rows) >= 0.95
    assert _near(rows) >= 0.9 * len(rows)
