"""Sensitivity, one at a time: each key alone varied around the recipe, everything else fixed, over several seeds.

In the flow: recipe and space -> points (a value and a seed each) -> planned trials -> effects against the recipe as it
is, seed by seed -> a ranking with errors, sensitivity.json and sensitivity.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.errors import RunError
from edgetune.files import write_json
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.tune.confirm import common
from edgetune.tune.effects import Effect, noise, paired_effect
from edgetune.tune.pictures import draw_sensitivity
from edgetune.tune.planned import Outcome, run_points
from edgetune.tune.run import STAGE
from edgetune.tune.space import Space, read_space, same, values_of
from edgetune.tune.storage import close, quiet_optuna, reached_database
from edgetune.tune.study import Search, StudyDir, open_search

NAME = "one at a time"
RANGE_POINTS = 4
"""Values of a range, evenly from end to end."""


@dataclass(frozen=True)
class Step:
    """One value of one key, everything else as in the recipe."""

    value: Any
    objectives: tuple[float | None, ...]
    """By seed; None where the training was given up."""
    effect: Effect | None
    """Against the recipe as it is, over the seeds that both have."""
    reason: str | None
    """Why a training was given up."""


@dataclass(frozen=True)
class Sensitivity:
    """What one key does."""

    key: str
    own: Any
    """The recipe's value."""
    steps: tuple[Step, ...]
    spread: float
    """From the worst to the best mean effect among its values, the recipe's own (0) among them."""
    error: float | None
    """Standard error of the effect that is farthest from 0; None of one seed."""
    in_noise: float | None
    """The spread in standard deviations of what another seed alone changes."""


@dataclass(frozen=True)
class SensitivityResult:
    """All keys, the one that matters most first."""

    folder: StudyDir
    keys: tuple[Sensitivity, ...]
    document: Mapping[str, Any]


def one_at_a_time(
    recipe: Recipe, folder: StudyDir, *, force: bool = False, progress: Progress | None = None
) -> SensitivityResult:
    """Vary each key of the space alone; goes on where it was stopped. Raises as `search` does, and RunError where the
    recipe itself could not be trained.
    """
    read_space(recipe, learning_rate=1e-4)
    with quiet_optuna(), reached_database(recipe.name):
        found = open_search(recipe, folder, force=force, progress=progress)
        try:
            return _measure(found)
        finally:
            close(found.study._storage)


def _measure(found: Search) -> SensitivityResult:
    table, first = found.recipe.tune, found.recipe.train.seed
    seeds = tuple(range(first, first + table.seeds))
    plan = steps(found.recipe, found.space, found.bench.learning_rate)
    varied = [{}, *({key: value} for key, values in plan.items() for value in values)]
    points = [{**values, "train.seed": seed} for seed in seeds for values in varied]  # a seed after the other
    found.notify({"stage": STAGE, "message": f"{len(points)} trainings: {len(varied)} recipes, {len(seeds)} seeds"})
    outcomes = run_points(found, NAME, points)
    by_recipe = [outcomes[at :: len(varied)] for at in range(len(varied))]
    if all(outcome.objective is None for outcome in by_recipe[0]):
        raise RunError(
            f"{found.recipe.name}: the recipe itself was not measured: {by_recipe[0][0].reason}",
            cure="make it train first: edgetune train RECIPE",
        )
    level = noise([[one.objective for one in group if one.objective is not None] for group in by_recipe])
    is_loss = found.directions[0] == "minimize"
    keys, at = [], 1
    own = values_of(found.recipe, found.space, learning_rate=found.bench.learning_rate)
    for key, values in plan.items():
        groups = by_recipe[at : at + len(values)]
        at += len(values)
        pairs = zip(values, groups, strict=True)
        made = [_step(value, group, by_recipe[0], is_loss=is_loss) for value, group in pairs]
        keys.append(_sensitivity(key, own.get(key), made, level))
    ranked = tuple(sorted(keys, key=lambda item: -item.spread))
    return _finish(found, ranked, seeds, by_recipe[0], level)


def steps(recipe: Recipe, space: Space, learning_rate: float) -> dict[str, list[Any]]:
    """The values of each key that are tried: points of its range or its choices, the recipe's own left out."""
    own = values_of(recipe, space, learning_rate=learning_rate)
    return {
        key: [value for value in item.points(RANGE_POINTS) if key not in own or not same(value, own[key])]
        for key, item in space.items()
    }


def _step(value: Any, outcomes: list[Outcome], base: list[Outcome], *, is_loss: bool) -> Step:
    ours, theirs = common(outcomes, base)
    return Step(
        value,
        tuple(outcome.objective for outcome in outcomes),
        paired_effect(ours, theirs, is_loss=is_loss) if ours else None,
        next((outcome.reason for outcome in outcomes if outcome.reason), None),
    )


def _sensitivity(key: str, own: Any, made: list[Step], level: float | None) -> Sensitivity:
    effects = [step.effect for step in made if step.effect is not None]
    means = [0.0, *(effect.mean for effect in effects)]
    spread = max(means) - min(means)
    far = max(effects, key=lambda effect: abs(effect.mean), default=None)
    error = None if far is None or far.deviation is None else far.deviation / far.seeds**0.5
    return Sensitivity(key, own, tuple(made), spread, error, spread / level if level else None)


def _finish(
    found: Search, keys: tuple[Sensitivity, ...], seeds: tuple[int, ...], base: list[Outcome], level: float | None
) -> SensitivityResult:
    recipe = found.recipe
    document = {
        "recipe": recipe.name,
        "metric": recipe.evaluate.metric,
        "score_of": recipe.tune.score_of,
        "objective": recipe.tune.objectives[0],
        "direction": found.directions[0],
        "seeds": list(seeds),
        "as_it_is": [outcome.objective for outcome in base],
        "noise": level,
        "keys": [dataclasses.asdict(item) for item in keys],
        "provenance": provenance(recipe.train.seed),
    }
    write_json(found.folder.path / "sensitivity.json", document)
    draw_sensitivity(document, found.folder.path / "sensitivity.png")
    return SensitivityResult(found.folder, keys, document)
