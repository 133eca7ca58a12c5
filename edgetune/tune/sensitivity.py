"""Sensitivity, one at a time: each key alone varied around the recipe, everything else fixed, over several seeds.

In the flow: recipe and space -> points (a value and a seed each) -> planned trials -> effects against the recipe as it
is, seed by seed -> a ranking with errors, sensitivity.json and sensitivity.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.errors import RunError, is_stop
from edgetune.files import write_json
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.tune.confirm import common
from edgetune.tune.effects import Effect, noise, paired_effect
from edgetune.tune.pictures import draw_sensitivity
from edgetune.tune.planned import Outcome, outcomes_so_far, run_points
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
    recipe: Recipe,
    folder: StudyDir,
    *,
    force: bool = False,
    on_stop: Callable[[SensitivityResult], object] | None = None,
    progress: Progress | None = None,
) -> SensitivityResult:
    """Vary each key of the space alone; goes on where it was stopped. Raises as `search` does, and RunError where the
    recipe itself could not be trained.

    What the finished trainings say when a signal ends it is kept as at the end, and `on_stop` is given it.
    """
    read_space(recipe, learning_rate=1e-4)
    with quiet_optuna(), reached_database(recipe.name):
        found = open_search(recipe, folder, force=force, progress=progress)
        try:
            return _measure(found, on_stop)
        finally:
            close(found.study._storage)


@dataclass(frozen=True)
class _Plan:
    """Which recipes are trained with which seeds."""

    values: Mapping[str, list[Any]]
    """Of each key, beside the recipe's own."""
    seeds: tuple[int, ...]

    @property
    def varied(self) -> list[dict[str, Any]]:
        """What each recipe has that the one as it is has not; {} of that one, the first."""
        return [{}, *({key: value} for key, values in self.values.items() for value in values)]

    @property
    def points(self) -> list[dict[str, Any]]:
        """All trainings, a seed after the other: where they end early, the first seeds are whole."""
        return [{**values, "train.seed": seed} for seed in self.seeds for values in self.varied]


def _measure(found: Search, on_stop: Callable[[SensitivityResult], object] | None) -> SensitivityResult:
    """The trainings, and what they say; after a signal what those say that are finished, if anything."""
    first = found.recipe.train.seed
    plan = _Plan(
        steps(found.recipe, found.space, found.bench.learning_rate),
        tuple(range(first, first + found.recipe.tune.seeds)),
    )
    text = f"{len(plan.points)} trainings: {len(plan.varied)} recipes, {len(plan.seeds)} seeds"
    found.notify({"stage": STAGE, "message": f"{text}, compared by {found.recipe.tune.objectives[0]}"})
    try:
        outcomes = run_points(found, NAME, plan.points)
    except BaseException as error:
        if is_stop(error) and (partial := _told(found, plan, outcomes_so_far(found, NAME, plan.points))):
            text = f"stopped; what it found so far is in {found.folder.path}, and it goes on later"
            found.notify({"stage": STAGE, "message": text})
            if on_stop is not None:
                on_stop(partial)
        raise
    result = _told(found, plan, outcomes)
    if result is None:
        raise RunError(
            f"{found.recipe.name}: the recipe itself was not measured: {outcomes[0].reason}",
            cure="make it train first: edgetune train RECIPE",
        )
    return result


def _told(found: Search, plan: _Plan, outcomes: list[Outcome]) -> SensitivityResult | None:
    """What outcomes, in the order of the plan's points, say; None where the recipe as it is has none."""
    count = len(plan.varied)
    base, *others = [outcomes[at::count] for at in range(count)]
    if all(outcome.objective is None for outcome in base):
        return None
    level = noise([[one.objective for one in group if one.objective is not None] for group in (base, *others)])
    is_loss = found.directions[0] == "minimize"
    own = values_of(found.recipe, found.space, learning_rate=found.bench.learning_rate)
    keys, left = [], iter(others)
    for key, values in plan.values.items():
        made = [_step(value, next(left), base, is_loss=is_loss) for value in values]
        keys.append(_sensitivity(key, own.get(key), made, level))
    ranked = tuple(sorted(keys, key=lambda item: -item.spread))
    finished = sum(outcome.is_made for outcome in outcomes)
    facts = {
        "seeds": list(plan.seeds),
        "trainings": {"planned": len(outcomes), "finished": finished},
        "is_partial": finished < len(outcomes),
        "as_it_is": [outcome.objective for outcome in base],
        "noise": level,
    }
    return _finish(found, ranked, facts)


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


def _finish(found: Search, keys: tuple[Sensitivity, ...], facts: Mapping[str, Any]) -> SensitivityResult:
    recipe = found.recipe
    document = {
        "recipe": recipe.name,
        "metric": recipe.evaluate.metric,
        "score_of": recipe.tune.score_of,
        "objective": recipe.tune.objectives[0],
        "direction": found.directions[0],
        **facts,
        "keys": [dataclasses.asdict(item) for item in keys],
        "provenance": provenance(recipe.train.seed),
    }
    write_json(found.folder.sensitivity, document)
    draw_sensitivity(document, found.folder.sensitivity.with_suffix(".png"))
    return SensitivityResult(found.folder, keys, document)
