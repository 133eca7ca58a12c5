"""The parts of the comparison of searches: what of each is still to be made, and how one piece of it is made."""

from __future__ import annotations

import dataclasses
import operator
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import click
import numpy as np

from benchmarks.tune_results import Place, this_commit
from benchmarks.tune_searches import BUDGETS, SEARCH_SEEDS, make_search, missing_searches, range_of, table_of, typed
from benchmarks.tune_table import Axis, grid, scores, train_entry
from benchmarks.tuned import SCORED, found_at, ranks
from edgetune.errors import DivergedError
from edgetune.recipe import Recipe
from edgetune.tune.effects import paired_effect
from edgetune.tune.member import PopulationDir
from edgetune.tune.population import train_population
from edgetune.tune.space import recipe_with
from edgetune.tune.trial import TrialDir, Workbench

TUNED_BY, TUNED_WITH = "GP", 12
"""The method and the budget whose values are tested: what `edgetune tune` does where nothing else is asked."""
TEST_SEEDS = range(101, 106)
TESTED = ("default", "tuned")
OBJECTIVE_TRIALS = 16


@dataclass(frozen=True)
class Part:
    """What is measured piece by piece; `make` is given one of `missing`, keeps it and says what came out."""

    missing: Callable[[Place], Sequence[Any]]
    make: Callable[[Place, Any], str]
    cost: float
    """Of a piece, in trainings: what time is reckoned by."""
    is_ready: Callable[[Place], bool] = lambda _: True
    """Whether what it is made from is there."""


@cache
def bench_of(place: Place) -> Workbench:
    """The base of a task, loaded once."""
    return Workbench(place.recipe, place.folder)


def missing_trainings(place: Place) -> Sequence[dict[str, float]]:
    """Points of the grid, in an order that a seed shuffles."""
    done = [one["values"] for one in place.found.get("table", []) if "exported" in one or "diverged" in one]
    wanted = [values for values in grid(place.axes) if values not in done]
    random.Random(0).shuffle(wanted)
    return wanted


def make_training(place: Place, values: Mapping[str, float]) -> str:
    """One point of the grid."""
    bench = bench_of(place)
    entry = train_entry(bench, place.recipe, typed(values), place.empty("training"))
    entry = {**entry, "commit": this_commit()}

    def change(found: dict[str, Any]) -> dict[str, Any]:
        others = [other for other in found.get("table", []) if other["values"] != entry["values"]]
        return {**found, "auto_learning_rate": bench.learning_rate, "table": [*others, entry]}

    place.results.keep(place.task, change)
    return f"{entry['values']}: {entry.get('exported', 'diverged')}"


def missing_tests(place: Place) -> Sequence[tuple[str, int]]:
    """Recipes and seeds; those of other tuned values are done again."""
    found = place.found
    made = found.get("tests", []) if found.get("tuned_values") == tuned_values(found) else []
    done = [(one["recipe"], one["seed"]) for one in made]
    wanted = [(name, seed) for seed in TEST_SEEDS for name in TESTED]
    return [which for which in wanted if which not in done]


def make_test(place: Place, which: tuple[str, int]) -> str:
    """The recipe as it is, or tuned, trained with a new seed and scored, as exported, on the test rows."""
    name, seed = which
    tuned = tuned_values(place.found)
    if place.found.get("tuned_values") != tuned:
        place.results.keep(place.task, lambda found: {**_without_tests(found), "tuned_values": tuned})
    bench, recipe, judge = bench_of(place), place.recipe, _judge(place)
    if judge.labels != bench.labels:
        raise click.ClickException("the test rows have other labels than the eval rows")
    folder = place.empty("test")
    values = typed(tuned or {}) if name == "tuned" else {}
    changed = recipe_with(recipe, {**values, "train.seed": seed})
    bench.measure(changed, folder)
    score = scores(judge.score(scored_as(changed, "exported"), TrialDir(folder, shared_cache=judge.cache)))["score"]
    place.results.add(place.task, "tests", {"recipe": name, "seed": seed, "score": score})
    place.results.keep(place.task, lambda found: {**found, "test_effect": _effect(recipe, found["tests"])})
    return f"{name}, seed {seed}: {score:.4f}"


@cache
def _judge(place: Place) -> Workbench:
    """A workbench whose eval rows are the test rows."""
    recipe = place.recipe
    judged = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, eval=recipe.data.test))
    return Workbench(judged, place.folder / "judge")


def tuned_values(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of the search by TUNED_BY whose best score with a budget of TUNED_WITH is the median of its seeds;
    None before all of them are done.
    """
    runs = found.get("searches", {}).get(TUNED_BY, [])
    if len(runs) < len(SEARCH_SEEDS):
        return None
    most = TUNED_WITH * found["training_tokens"]
    ends = sorted((found_at(run["course"], most) for run in runs), key=operator.itemgetter(1))
    return dict(ends[len(ends) // 2][2])


def _without_tests(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("tests", "test_effect")}


def _effect(recipe: Recipe, made: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the tuned recipe against the default one, over the seeds that both have; None where there are none."""
    by_recipe = {name: {one["seed"]: one["score"] for one in made if one["recipe"] == name} for name in TESTED}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_recipe.values())))
    ours, theirs = ([by_recipe[name][seed] for seed in seeds] for name in ("tuned", "default"))
    is_loss = recipe.evaluate.metric == "loss"
    return dataclasses.asdict(paired_effect(ours, theirs, is_loss=is_loss)) if seeds else None


def missing_objectives(place: Place) -> Sequence[dict[str, float]]:
    """Trials of which it is measured how the objectives rank them: drawn from the grid's ranges."""
    done = [one["values"] for one in place.found.get("objectives", [])]
    draw = random.Random(0)
    drawn = [{axis.key: _drawn(axis, draw.random()) for axis in place.axes} for _ in range(OBJECTIVE_TRIALS)]
    return [values for values in drawn if values not in done]


def make_objective(place: Place, values: Mapping[str, float]) -> str:
    """One training, scored by each of SCORED."""
    bench, folder = bench_of(place), place.empty("objective")
    recipe, run_dir = recipe_with(place.recipe, values), TrialDir(folder, shared_cache=bench.cache)
    found: dict[str, Any] = {}
    started = time.perf_counter()
    try:
        bench.train(recipe, run_dir)
        found["train_s"] = round(time.perf_counter() - started, 1)
        for score_of in SCORED:
            started = time.perf_counter()
            scored = scores(bench.score(scored_as(recipe, score_of), run_dir))
            found[score_of] = {**scored, "wall_s": round(time.perf_counter() - started, 1)}
    except DivergedError:
        found = {"diverged": True}
    place.results.add(place.task, "objectives", {"values": dict(values), **found})
    is_loss = recipe.evaluate.metric == "loss"
    place.results.keep(place.task, lambda kept: {**kept, "ranks": ranks(kept["objectives"], is_loss=is_loss)})
    return f"{dict(values)}: " + ", ".join(f"{name} {found[name]['score']:.4f}" for name in SCORED if name in found)


def missing_populations(place: Place) -> Sequence[int]:
    """Seeds."""
    done = [run["seed"] for run in place.found.get("populations", [])]
    return [seed for seed in SEARCH_SEEDS if seed not in done]


def make_population(place: Place, seed: int) -> str:
    """As many members as the smallest budget has trainings; what they found by the time that they had spent its tokens,
    which is at their end alone. One that was killed goes on.
    """
    recipe = place.recipe
    rate = next(axis for axis in place.axes if axis.key == "train.learning_rate")
    table = dataclasses.replace(recipe.tune, population=BUDGETS[0], space={rate.key: range_of(rate)}, seed=seed)
    folder = place.folder / f"population-{seed}"
    found = train_population(
        dataclasses.replace(recipe, tune=table),
        PopulationDir(folder),
        progress=lambda event: click.echo(event.get("message"), err=True),
    ).document
    best = found["best"]
    run = {
        "seed": seed,
        "members": found["population"],
        "generations": found["generations"],
        "tokens": found["tokens"],
        "score": best["loss"] if best["score"] is None else best["score"],
        "lineage": best["lineage"],
        "member_minutes": round(found["member_minutes"], 1),
    }
    place.results.add(place.task, "populations", run)
    shutil.rmtree(folder)
    return f"seed {seed}: {run['score']:.4f}"


def scored_as(recipe: Recipe, score_of: str) -> Recipe:
    """The recipe, its model scored so."""
    return dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, score_of=score_of))


def _drawn(axis: Axis, place: float) -> Any:
    """The value at a place of an axis, 0 to 1, by its logarithm."""
    value = float(np.exp(np.interp(place, (0, 1), np.log((axis.points[0], axis.points[-1])))))
    return float(f"{value:.3g}") if axis.key == "train.learning_rate" else round(value)


PARTS: Mapping[str, Part] = {
    "trainings": Part(missing_trainings, make_training, cost=1.0),
    "searches": Part(missing_searches, make_search, 0.05, lambda place: table_of(place) is not None),
    "tests": Part(missing_tests, make_test, 1.0, lambda place: tuned_values(place.found) is not None),
    "objectives": Part(missing_objectives, make_objective, cost=1.0),
    "populations": Part(missing_populations, make_population, cost=float(BUDGETS[0])),
}
