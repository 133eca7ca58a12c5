"""The GPU's benchmark, at toy size on a CPU: every section measures something, and its page can be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.memory_tables import gpu_table
from benchmarks.readme import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu") / "toy.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(out)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_section_is_measured(report: dict) -> None:
    assert report["errors"] == []
    assert [len(report[name]) for name in ("losses", "layers", "headlines", "cards", "recovery")] == [1, 1, 2, 1, 1]
    assert [row["trainer"] for row in report["trainers"]] == ["EdgeTune", "Trainer"]
    assert len(report["planner"]) == 2
    assert report["planned"]["rows"] == len(report["headlines"] + report["planner"])
    for row in report["headlines"] + report["trainers"] + report["cards"] + report["planner"]:
        assert row["peak_mib"] > 0
        assert row["tokens_per_s"] > 0


def test_the_device_computes_what_the_cpu_does(report: dict) -> None:
    (losses,), (layers,) = report["losses"], report["layers"]
    assert losses["largest"] < 1e-3
    assert losses["cpu"][-1] < losses["cpu"][0]
    assert layers["largest_difference"] < 0.01


def test_the_page_s_table_is_made_of_it(report: dict) -> None:
    table = gpu_table(report)
    assert "| toy | 2 x 64 | checkpointing, offload" in table
    failed = {"section": "cards", "card_gib": 6, "shape": "wide", "error": "OutOfMemoryError"}
    assert "| 6 GiB | wide | ran out of memory |" in gpu_table(report | {"errors": [failed]})
