"""What each task has of its own is written in words that recipes know."""

from __future__ import annotations

import pytest

from edgetune.errors import RecipeError
from edgetune.metric_names import METRIC_NAMES
from edgetune.recipe import EvaluateTable, check_value, parse_recipe, unknown_key
from edgetune.recipe.task import TASKS
from edgetune.task_names import TaskName


@pytest.mark.parametrize("name", TASKS)
def test_a_task_s_keys_are_keys_and_its_defaults_can_stand(name: TaskName) -> None:
    task = TASKS[name]
    assert [unknown_key(key) for key in task.idle_keys if unknown_key(key)] == []
    for table, values in task.defaults.items():
        for key, value in values.items():
            assert check_value(f"{table}.{key}", value) == (value, None)
    metric = task.defaults.get("evaluate", {}).get("metric", EvaluateTable.metric)
    assert metric in task.metrics


def test_every_metric_is_of_one_task() -> None:
    assert sorted(name for task in TASKS.values() for name in task.metrics) == sorted(METRIC_NAMES)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("other", TASKS)
def test_a_table_that_only_another_task_has_is_refused(name: TaskName, other: TaskName) -> None:
    for table in TASKS[other].tables:
        text = f'[model]\nbase = "b"\ntask = "{name}"\n[data]\ntrain = "t"\n[{table}]\n'
        if name == other:
            assert f"[{table}]" in parse_recipe(text, source="r.toml").to_toml()
        else:
            with pytest.raises(RecipeError, match=rf'^r.toml: \[{table}\]: needs model.task = "{other}"$'):
                parse_recipe(text, source="r.toml")
