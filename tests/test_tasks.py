"""Every stage that differs by task knows every task that a recipe can name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_args

import pytest

from edgetune.bundle.sweep import SWEEPS
from edgetune.task_names import TaskName

PACKAGE = Path(__file__).parent.parent / "edgetune"
STAGES = sorted(path.parent.name for path in PACKAGE.glob("*/task.py") if "\nTASKS" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_every_task(stage: str) -> None:
    tasks = importlib.import_module(f"edgetune.{stage}.task").TASKS
    assert set(tasks) == set(get_args(TaskName))


def test_stages_are_found() -> None:
    assert {"recipe", "model", "planning"} <= set(STAGES)


def test_export_best_knows_every_task() -> None:
    assert set(SWEEPS) == set(get_args(TaskName))
