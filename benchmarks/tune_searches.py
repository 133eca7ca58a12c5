"""Searches over a table of trainings, by each method with each seed, until the largest budget is spent."""

from __future__ import annotations

import dataclasses
import operator
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from optuna.storages import InMemoryStorage

from benchmarks.tune_results import METHODS, Place, this_commit
from benchmarks.tune_table import SCORE, Axis, TableBench, grid
from benchmarks.tune_tasks import TASKS
from edgetune.tune import study as studies
from edgetune.tune.findings import row
from edgetune.tune.run import run_trials
from edgetune.tune.space import recipe_with
from edgetune.tune.storage import quiet_optuna
from edgetune.tune.study import StudyDir, has_budget, open_search

BUDGETS = (12, 24, 48)
"""Whole trainings whose tokens a search may spend; what it had with the smaller ones lies on the way."""
MOST_TRIALS = 300
"""Far above what the tokens of the largest budget are enough for."""
SEARCH_SEEDS = range(5)


def missing_searches(place: Place) -> Sequence[tuple[str, int]]:
    """Methods and seeds; those over another table are done again."""
    table = table_of(place)
    is_same = table is not None and _facts(place, table).items() <= place.found.items()
    made = place.found.get("searches", {}) if is_same else {}
    done = {name: [run["seed"] for run in runs] for name, runs in made.items()}
    return [(name, seed) for name in METHODS for seed in SEARCH_SEEDS if seed not in done.get(name, [])]


def make_search(place: Place, which: tuple[str, int]) -> str:
    """One search over the table."""
    name, seed = which
    table = table_of(place)
    assert table is not None
    facts = _facts(place, table)
    if not facts.items() <= place.found.items():
        place.results.keep(place.task, lambda found: {**found, **facts, "searches": {}})
    run = {**_search(place, table, *METHODS[name], seed=seed), "commit": this_commit()}

    def change(found: dict[str, Any]) -> dict[str, Any]:
        made = found["searches"]
        return {**found, "searches": {**made, name: [*made.get(name, []), run]}}

    place.results.keep(place.task, change)
    return f"{name}, seed {seed}: {run['course'][-1][1]:.4f}"


def table_of(place: Place) -> TableBench | None:
    """The table, where all its trainings are made."""
    entries = place.found.get("table", [])
    if len(entries) < len(list(grid(place.axes))):
        return None
    worst = TASKS[place.task].worst_score
    return TableBench(place.axes, entries, worst_score=worst, learning_rate=place.found["auto_learning_rate"])


def _facts(place: Place, table: TableBench) -> dict[str, Any]:
    """What the searches of a table share."""
    recipe = place.recipe
    rate = {"train.learning_rate": table.learning_rate} if recipe.train.learning_rate == "auto" else {}
    return {
        "budgets": list(BUDGETS),
        "score_of": "exported" if table.is_exported else "deployed",
        "training_tokens": table.tokens,
        "default": float(table.look_up(recipe_with(recipe, rate))[SCORE]),
        "is_loss": recipe.evaluate.metric == "loss",
        "extremes": list(table.extremes),
    }


def _search(place: Place, bench: TableBench, sampler: str, pruner: str, *, seed: int) -> dict[str, Any]:
    """Tokens spent after each trial; its course, (tokens spent, score, values) whenever it found better."""
    recipe = place.recipe
    table = dataclasses.replace(
        recipe.tune,
        space={axis.key: range_of(axis) for axis in place.axes},
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        trials=MOST_TRIALS,
        tokens=BUDGETS[-1] * bench.tokens,
    )
    in_memory = mock.patch("edgetune.tune.study.open_storage", side_effect=lambda _: InMemoryStorage())  # faster
    with tempfile.TemporaryDirectory() as folder, quiet_optuna(), in_memory:
        found = open_search(
            dataclasses.replace(recipe, tune=table), StudyDir(Path(folder) / "searches" / "study"), bench=bench
        )
        run_trials(found, lambda one: has_budget(one) and studies.spent(one.study)["trials"] < one.most_trials)
        rows = [row(trial, found.space) for trial in found.study.get_trials(deepcopy=False)]
    is_better = operator.lt if recipe.evaluate.metric == "loss" else operator.gt
    spent, course = list[int](), list[tuple[int, float, dict[str, Any]]]()
    for trial in rows:
        total = (spent[-1] if spent else 0) + (trial.get("tokens") or 0)
        if total > table.tokens:  # the last trial; equal budgets
            break
        spent.append(total)
        if trial["state"] == "complete" and (not course or is_better(trial["objectives"][0], course[-1][1])):
            course.append((total, trial["objectives"][0], trial["values"]))
    return {"seed": seed, "spent": spent, "course": course}


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the grid as recipes have them."""
    return {key: value if key == "train.learning_rate" else int(value) for key, value in values.items()}


def range_of(axis: Axis) -> dict[str, Any]:
    """All of an axis, as a space has it."""
    low, high = typed({axis.key: axis.points[0]}), typed({axis.key: axis.points[-1]})
    return {"low": low[axis.key], "high": high[axis.key], "log": True}
