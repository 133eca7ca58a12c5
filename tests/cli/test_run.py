"""What `edgetune run` says below its table. edgetune/cli/run.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.cli import run
from edgetune.verify.checks import check

SUMMARY = {
    "folds": None,
    "rows": 4,
    "confidence": 0.95,
    "metric": "exact_match",
    "survival": {"verdict": "all of it kept"},
    "over_budget": [],
    "stage_s": {"train": 1.0},
    "wall_s": 1.0,
    "peak_bytes": 1024**2,
}


@pytest.mark.parametrize("differing", [0, 16])
def test_a_check_that_is_told_only_is_told_where_it_does_not_hold(
    capsys: pytest.CaptureFixture[str], differing: int
) -> None:
    name = "token ids of plain onnxruntime-genai"
    found = [check("token ids", 0, 0, "16 prompts"), check(name, differing, 0, "16 prompts", is_required=False)]
    summary: dict[str, Any] = {**SUMMARY, "verification": [item.__dict__ for item in found]}
    result: Any = SimpleNamespace(summary=summary, table="table", ledger="ledger", run_dir=SimpleNamespace(bundle="b"))
    run.show(result, "generation", as_json=False)
    told = capsys.readouterr().err
    assert (f"note {name}: {differing}, limit 0 (16 prompts)" in told) == bool(differing)
    assert "token ids: 0" not in told
