"""What a member of a population was trained with: its values at the start and each change since; pure.

It is inherited with the checkpoint: who copies a member has that member's past and a change of its own. As a recipe it
trains to the same adapter in one go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.recipe import AFTER, Recipe
from edgetune.tune.space import recipe_with


@dataclass(frozen=True)
class Lineage:
    """Values by keys like "train.learning_rate"."""

    values: Mapping[str, Any]
    """At the start."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """As train.changes has them."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Lineage:
        """As dataclasses.asdict gave it."""
        return cls(dict(values["values"]), tuple(dict(change) for change in values["changes"]))

    @property
    def now(self) -> dict[str, Any]:
        """The values that hold at its end."""
        found = dict(self.values)
        for change in self.changes:
            found |= {key: value for key, value in change.items() if key != AFTER}
        return found

    def then(self, step: int, values: Mapping[str, Any]) -> Lineage:
        """With other values after `step`; the same one where none is another."""
        now = self.now
        different = {key: value for key, value in values.items() if value != now.get(key)}
        return dataclasses.replace(self, changes=(*self.changes, {AFTER: step, **different})) if different else self

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe of one training that does what this member did, no population's any more.

        A training that diverges is not gone on with at a lower rate: in a population another takes its place.
        """
        tune = dataclasses.replace(recipe.tune, population=None, workers=None, ray_address=None)
        train = dataclasses.replace(recipe.train, changes=tuple(map(dict, self.changes)), divergence_restarts=0)
        return recipe_with(dataclasses.replace(recipe, tune=tune, train=train), self.values)
