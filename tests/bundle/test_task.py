"""bundle/task.py: what export knows of each task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgetune.bundle.task import decisive_tables, task_of
from edgetune.model.classifier import SPEC
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe


def test_a_merged_folder_tells_its_task(tmp_path: Path) -> None:
    assert task_of(tmp_path) == "generation"
    (tmp_path / SPEC).write_text("{}")
    assert task_of(tmp_path) == "classification"


def test_what_judges_a_bundle_does_not_decide_it() -> None:
    recipe = Recipe(ModelTable("tiny"), DataTable("x"))
    strict = dataclasses.replace(recipe, export=ExportTable(min_gain_kept=1.0))
    coarse = dataclasses.replace(recipe, export=ExportTable(block_size=256))
    assert decisive_tables(strict) == decisive_tables(recipe) != decisive_tables(coarse)
