"""Was it luck? The best recipe, and the one that the search began with, trained again with seeds that no trial had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.tune.effects import Effect, paired_effect
from edgetune.tune.planned import Outcome, run_points
from edgetune.tune.study import Search

NAME = "seeds"


@dataclass(frozen=True)
class Confirmation:
    """Both recipes over the same new seeds, by the first objective."""

    seeds: tuple[int, ...]
    best: tuple[float | None, ...]
    began_with: tuple[float | None, ...]
    """None where a training was given up."""
    effect: Effect | None
    """How much better the best is; None where no seed has both."""

    @property
    def is_better(self) -> bool:
        """Whether the best recipe was better on average."""
        return self.effect is not None and self.effect.mean > 0


def confirm(found: Search, values: Mapping[str, Any], count: int) -> Confirmation:
    """Train the recipe with these values, and as it is, with `count` seeds after its own. Raises what trials raise."""
    first = found.recipe.train.seed
    seeds = tuple(range(first + 1, first + 1 + count))
    points = [{**what, "train.seed": seed} for seed in seeds for what in (values, {})]
    outcomes = run_points(found, NAME, points)
    best, began_with = outcomes[0::2], outcomes[1::2]
    ours, theirs = common(best, began_with)
    effect = paired_effect(ours, theirs, is_loss=found.directions[0] == "minimize") if ours else None
    return Confirmation(seeds, _objectives(best), _objectives(began_with), effect)


def common(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """The objectives of those pairs in which both trainings came to one."""
    pairs = [(one.objective, other.objective) for one, other in zip(ours, theirs, strict=True)]
    whole = [(one, other) for one, other in pairs if one is not None and other is not None]
    return [one for one, _ in whole], [other for _, other in whole]


def _objectives(outcomes: list[Outcome]) -> tuple[float | None, ...]:
    return tuple(outcome.objective for outcome in outcomes)
