"""Scores of a bench's targets: as `edgetune evaluate` takes them, within the budget of their recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.bench.left_out import LeftOut
from edgetune.bench.subjects import find_subjects
from edgetune.bench.worth import score_on_rows
from edgetune.errors import ModelError
from edgetune.recipe import BudgetTable


def test_a_target_is_scored_within_the_budget_of_its_recipe(
    tiny_base: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BudgetTable] = []

    def evaluate(*_: object, budget: BudgetTable, **__: object) -> None:
        seen.append(budget)
        raise ModelError("not measured here")

    monkeypatch.setattr("edgetune.bench.worth.evaluate", evaluate)
    left_out = LeftOut()
    overrides = [f'data.test="{tiny_rows}"', "budget.memory=3GiB", "evaluate.max_rows=4"]
    subjects = find_subjects([str(tiny_base)], overrides, left_out)
    score_on_rows(subjects, None, tmp_path / "answers", work=tmp_path, left_out=left_out, progress=lambda _: None)
    assert seen == [BudgetTable(memory="3GiB")]
