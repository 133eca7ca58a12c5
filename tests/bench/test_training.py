"""What training cost, from the run folder: edgetune/bench/training.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.bench.training import training_of
from edgetune.run_dir import RunDir


def folder(tmp_path: Path, rates: list[float], train: object) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.results.mkdir(parents=True)
    events = [{"stage": "train", "step": step, "tokens_per_s": rate} for step, rate in enumerate(rates)]
    run_dir.events.write_text("".join(json.dumps(event) + "\n" for event in [*events, {"stage": "train", "loss": 1.0}]))
    (run_dir.results / "summary.json").write_text(json.dumps({"train": train}))
    return run_dir


def test_the_numbers_are_those_that_the_run_left(tmp_path: Path) -> None:
    found = training_of(folder(tmp_path, [100.0, 110.0, 90.0], {"peak_bytes": 5, "tokens_per_s": 99.5, "wall_s": 3.0}))
    assert found["run"] == "run"
    assert (found["peak_bytes"], found["wall_s"]) == ({"value": 5}, {"value": 3.0})
    assert found["step_tokens_per_s"]["median"] == 100.0
    assert found["step_tokens_per_s"]["least"] == pytest.approx(91)


def test_a_run_that_was_only_trained_tells_it_too(tmp_path: Path) -> None:
    run_dir = folder(tmp_path, [100.0, 110.0], {"wall_s": 3.0})
    (run_dir.results / "train.json").write_text(json.dumps({"peak_bytes": 7, "provenance": {"seed": 1}}))
    found = training_of(run_dir)
    assert (found["peak_bytes"], found["provenance"]) == ({"value": 7}, {"seed": 1})
    assert "absent" in found["wall_s"]


@pytest.mark.parametrize("train", [None, "old", {}])
def test_what_a_run_did_not_leave_is_absent(train: object, tmp_path: Path) -> None:
    found = training_of(folder(tmp_path, [100.0], train))
    assert "edgetune run" in found["peak_bytes"]["absent"]
    assert "fewer than two steps" in found["step_tokens_per_s"]["absent"]


def test_a_folder_with_nothing_is_all_absent(tmp_path: Path) -> None:
    found = training_of(RunDir(tmp_path))
    assert "absent" in found["wall_s"]
    assert found["provenance"] is None
