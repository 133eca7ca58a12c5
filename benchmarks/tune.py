"""Searches against each other at equal budgets of training tokens, on nano-SNIPS and MiniLM-BANKING77.

    EDGETUNE_DATA=... python -m benchmarks.tune trainings --task nano-snips     # the table, resumable
    EDGETUNE_DATA=... python -m benchmarks.tune searches                        # over what tables are whole
    EDGETUNE_DATA=... python -m benchmarks.tune populations --task nano-snips   # of real trainings, on Ray Tune
    EDGETUNE_DATA=... python -m benchmarks.tune tests --task nano-snips         # default and tuned, on test rows

All of them write into results/tune.json after each training and each search, and go on where they were stopped;
`searches` draws results/tune.png too. Trainings are real ones, on few rows so that one core can do a whole grid;
searches are `edgetune tune`'s own, over that table (tune_table.py), each until the tokens of the largest budget are
spent: what it had at the smaller ones lies on the way. A population's values change while it trains, which no table can
stand for, so that its members are trained: as many as the smallest budget has trainings, their rank the recipe's. Tests
train the recipe as it is and with the values that a search found, with new seeds, and score both as exported on test
rows that nothing else has seen.
"""

from __future__ import annotations

import dataclasses
import operator
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from optuna.storages import InMemoryStorage

from benchmarks.readme import RESULTS
from benchmarks.tune_table import SCORE, Axis, TableBench, grid, train_entry
from benchmarks.tune_tasks import TASKS, Task, task_recipe
from benchmarks.tuned import draw, found_at
from edgetune.files import read_json, write_json
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.tune import study as studies
from edgetune.tune.effects import paired_effect
from edgetune.tune.findings import row
from edgetune.tune.member import PopulationDir
from edgetune.tune.population import train_population
from edgetune.tune.run import run_trials
from edgetune.tune.space import recipe_with
from edgetune.tune.storage import quiet_optuna
from edgetune.tune.study import StudyDir, has_budget, open_search
from edgetune.tune.trial import TrialDir, Workbench

OUT = RESULTS / "tune.json"
BUDGETS = (12, 24, 48)
"""Whole trainings whose tokens a search may spend."""
MOST_TRIALS = 300
"""Far above what the tokens of the largest budget are enough for."""
TUNED_BY, TUNED_WITH = "GP", 12
"""The method and the budget whose values are tested: what `edgetune tune` does where nothing else is asked."""
TEST_SEEDS = range(101, 106)
METHODS = {
    "random": ("random", "none"),
    "TPE": ("tpe", "none"),
    "TPE + halving": ("tpe", "halving"),
    "TPE + Hyperband": ("tpe", "hyperband"),
    "GP": ("gp", "none"),
    "GP + halving": ("gp", "halving"),
}
"""Sampler and pruner of each."""


@click.group()
def main() -> None:
    """Searches for hyperparameters, compared."""


task_option = click.option("--task", type=click.Choice(list(TASKS)), required=True)
work_option = click.option("--work", type=click.Path(path_type=Path), default=Path("runs/benchmark-tune"))


@main.command()
@task_option
@work_option
def trainings(task: str, work: Path) -> None:
    """Train what is missing of a task's grid, in an order that a seed shuffles."""
    recipe = task_recipe(task, work)
    bench = Workbench(recipe, work / task)
    _keep(task, lambda found: {**found, "auto_learning_rate": bench.learning_rate})
    wanted = list(grid(TASKS[task].axes))
    random.Random(0).shuffle(wanted)
    done = [entry["values"] for entry in _read(task).get("table", []) if "exported" in entry or "diverged" in entry]
    for values in wanted:
        if values in done:
            continue
        folder = work / task / "training"
        shutil.rmtree(folder, ignore_errors=True)
        entry = train_entry(bench, recipe, _typed(values), folder)
        _keep(task, lambda found, entry=entry: {**found, "table": [*_others(found, entry), entry]})
        click.echo(f"{task}: {entry}", err=True)


@main.command()
@work_option
@click.option("--seeds", default=5, show_default=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True, help="Only this one.")
def searches(work: Path, seeds: int, methods: tuple[str, ...]) -> None:
    """Search every whole table by every method, each with so many seeds, and draw the picture."""
    for task, one in TASKS.items():
        table = _read(task).get("table", [])
        if len(table) < len(list(grid(one.axes))):
            click.echo(f"{task}: {len(table)} trainings, its table is not whole", err=True)
            continue
        rate = _read(task)["auto_learning_rate"]
        bench = TableBench(one.axes, table, worst_score=one.worst_score, learning_rate=rate)
        recipe = task_recipe(task, work)
        facts = {
            "budgets": list(BUDGETS),
            "score_of": "exported" if bench.is_exported else "deployed",
            "training_tokens": bench.tokens,
            "default": _own(recipe, bench),
            "is_loss": recipe.evaluate.metric == "loss",
            "extremes": list(bench.extremes),
        }
        if any(_read(task).get(name) != value for name, value in facts.items()):  # searches of another table go
            _keep(task, lambda before, facts=facts: {**before, **facts, "searches": {}})
        for name in methods or METHODS:
            for seed in range(len(_read(task)["searches"].get(name, [])), seeds):
                run = _search(recipe, one, bench, *METHODS[name], seed=seed)
                _keep(task, lambda before, name=name, run=run: _with_search(before, name, run))
                click.echo(f"{task}: {name}, seed {seed}: {run['course'][-1][1]:.4f}", err=True)
    draw(read_json(OUT), OUT.with_suffix(".png"))


@main.command()
@task_option
@work_option
@click.option("--seeds", default=5, show_default=True)
def populations(task: str, work: Path, seeds: int) -> None:
    """Train populations of as many members as the smallest budget has trainings, one with each of so many seeds."""
    recipe = task_recipe(task, work)
    for seed in range(seeds):
        if seed in [run["seed"] for run in _read(task).get("populations", [])]:
            continue
        run = _population(recipe, TASKS[task], work / task / f"population-{seed}", seed)
        _keep(task, lambda found, run=run: {**found, "populations": [*found.get("populations", []), run]})
        click.echo(f"{task}: population, seed {seed}: {run['score']:.4f}", err=True)


@main.command()
@task_option
@work_option
def tests(task: str, work: Path) -> None:
    """Train the default and the tuned recipe with TEST_SEEDS and score both on the test rows."""
    recipe = task_recipe(task, work)
    tuned = _best_values(task)
    if _read(task).get("tuned_values") != tuned:
        _keep(task, lambda found: {**found, "tuned_values": tuned, "tests": {}})
    bench = Workbench(recipe, work / task)
    judged = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, eval=recipe.data.test))
    judge = Workbench(judged, work / task / "judge")
    if judge.labels != bench.labels:
        raise click.ClickException("the test rows have other labels than the eval rows")
    for seed in TEST_SEEDS:
        for name, values in (("default", {}), ("tuned", tuned)):
            made = _read(task).get("tests", {}).get(name, {})
            if str(seed) in made:
                continue
            folder = work / task / "test"
            shutil.rmtree(folder, ignore_errors=True)
            changed = recipe_with(recipe, {**_typed(values), "train.seed": seed})
            bench.measure(changed, folder)
            scored = judge.score(_exported(changed), TrialDir(folder, shared_cache=judge.cache))
            value = scored.loss if scored.score is None else scored.score
            _keep(task, lambda found, name=name, seed=seed, value=value: _with_test(found, name, seed, value))
            click.echo(f"{task}: {name}, seed {seed}: {value:.4f}", err=True)
    _keep(task, lambda found: {**found, "test_effect": _effect(recipe, found["tests"])})


def _search(recipe: Recipe, task: Task, bench: TableBench, sampler: str, pruner: str, *, seed: int) -> dict[str, Any]:
    """A search: tokens spent after each trial; its course, (tokens spent, score, values) whenever it found better."""
    space = {
        axis.key: {"low": axis.points[0], "high": axis.points[-1], "log": True} | _kind(axis) for axis in task.axes
    }
    table = dataclasses.replace(
        recipe.tune,
        space=space,
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


def _population(recipe: Recipe, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """What a population found by the time that it had spent its tokens, which it does at its end alone."""
    rate = next(axis for axis in task.axes if axis.key == "train.learning_rate")
    space = {rate.key: {"low": rate.points[0], "high": rate.points[-1], "log": True}}
    table = dataclasses.replace(recipe.tune, population=BUDGETS[0], space=space, seed=seed)
    changed = dataclasses.replace(recipe, tune=table)
    found = train_population(
        changed, PopulationDir(folder), progress=lambda event: click.echo(event.get("message"), err=True)
    ).document
    shutil.rmtree(folder)
    best = found["best"]
    return {
        "seed": seed,
        "members": found["population"],
        "generations": found["generations"],
        "tokens": found["tokens"],
        "score": best["loss"] if best["score"] is None else best["score"],
        "lineage": best["lineage"],
        "member_minutes": round(found["member_minutes"], 1),
    }


def _own(recipe: Recipe, bench: TableBench) -> float:
    """The score of the recipe as it is, by the table."""
    values = {"train.learning_rate": bench.learning_rate} if recipe.train.learning_rate == "auto" else {}
    return float(bench.look_up(recipe_with(recipe, values))[SCORE])


def _best_values(task: str) -> dict[str, Any]:
    """The values of the search by TUNED_BY whose best score with a budget of TUNED_WITH is the median of its seeds."""
    found = _read(task)
    runs = found.get("searches", {}).get(TUNED_BY)
    if not runs:
        raise click.ClickException(f"{task} has no searches by {TUNED_BY} yet")
    most = TUNED_WITH * found["training_tokens"]
    ends = sorted((found_at(run["course"], most) for run in runs), key=operator.itemgetter(1))
    return dict(ends[len(ends) // 2][2])


def _others(found: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Any]:
    """The table without what an entry takes the place of."""
    return [other for other in found.get("table", []) if other["values"] != entry["values"]]


def _with_search(found: dict[str, Any], name: str, run: dict[str, Any]) -> dict[str, Any]:
    made = found["searches"]
    return {**found, "searches": {**made, name: [*made.get(name, []), run]}}


def _with_test(found: dict[str, Any], name: str, seed: int, value: float) -> dict[str, Any]:
    made = found.get("tests", {})
    return {**found, "tests": {**made, name: {**made.get(name, {}), str(seed): value}}}


def _exported(recipe: Recipe) -> Recipe:
    """The recipe, scored as it is shipped."""
    return dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, score_of="exported"))


def _effect(recipe: Recipe, made: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    ours, theirs = ([made[name][str(seed)] for seed in TEST_SEEDS] for name in ("tuned", "default"))
    return dataclasses.asdict(paired_effect(ours, theirs, is_loss=recipe.evaluate.metric == "loss"))


def _kind(axis: Axis) -> dict[str, Any]:
    """Ends of an integer key's range as integers."""
    if axis.key == "train.learning_rate":
        return {}
    return {"low": int(axis.points[0]), "high": int(axis.points[-1])}


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if key == "train.learning_rate" else int(value) for key, value in values.items()}


def _read(task: str) -> dict[str, Any]:
    found = read_json(OUT)["tasks"] if OUT.exists() else {}
    return dict(found.get(task, {}))


def _keep(task: str, change: Any) -> None:
    """Put what was measured of a task into results/tune.json."""
    before = read_json(OUT) if OUT.exists() else {"tasks": {}}
    tasks = {**before["tasks"], task: change(before["tasks"].get(task, {}))}
    write_json(
        OUT,
        {
            "what": "searches over tables of real trainings, interpolated between them; see benchmarks/tune.py",
            "methods": {name: list(how) for name, how in METHODS.items()},
            "rows": {name: dict(task.rows) for name, task in TASKS.items()},
            "threads": torch.get_num_threads(),
            "tasks": tasks,
            "provenance": provenance(),
        },
    )


if __name__ == "__main__":
    main()
