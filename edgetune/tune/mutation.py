"""Values of a population: the space, those that its members begin with, and those that a copy is trained on with; pure.

Source: Jaderberg et al. 2017, Population Based Training of Neural Networks (arXiv:1711.09846), section 3. There a value
is multiplied by 0.8 or 1.2, which never leaves 0 and knows no bounds; here it moves by a tenth of its range.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from edgetune.errors import RecipeError
from edgetune.recipe import CHANGING_KEYS, Recipe
from edgetune.tune.space import Choices, Range, Space, as_text, read_space, values_of

QUARTILE = 0.25
"""Of the members so many are worst and copy, and so many are best and are copied."""
RESAMPLED = 0.25
"""How often a copy's value is drawn anew from its whole range."""
MOVE = 0.1
"""Of its range a value moves up or down."""


def population_space(recipe: Recipe, *, learning_rate: float | None = None) -> Space:
    """What a population changes, as [tune] space says; without it learning rate, dropout and weight decay around the
    recipe's values. Raises RecipeError for a space that cannot stand, or a key that cannot change during a training.
    """
    space = read_space(recipe, learning_rate=learning_rate)
    if recipe.tune.space:
        for key in space:
            if key not in CHANGING_KEYS:
                raise RecipeError(
                    f'{recipe.name}: tune.space."{key}": cannot change while a population trains',
                    cure=f"search it without tune.population; what can: {', '.join(CHANGING_KEYS)}",
                )
        return space
    return {key: item for key, item in space.items() if key in CHANGING_KEYS}


def first_values(recipe: Recipe, space: Space, *, learning_rate: float) -> list[dict[str, Any]]:
    """What each member begins with: the first with the recipe's own values as far as the space has them (if
    tune.warm_start), the others evenly spread over each range, in an order that tune.seed shuffles.
    """
    count, draw = recipe.tune.population or 0, random.Random(f"{recipe.tune.seed} first")
    members: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, item in space.items():
        places = [(number + draw.random()) / count for number in range(count)]
        draw.shuffle(places)
        for member, place in zip(members, places, strict=True):
            member[key] = _at(item, place)
    if recipe.tune.warm_start:
        members[0] |= values_of(recipe, space, learning_rate=learning_rate)
    return members


def perturbed(values: Mapping[str, Any], space: Space, draw: random.Random) -> dict[str, Any]:
    """Each value moved up or down by MOVE of its range, a choice to its neighbour; or, with the chance RESAMPLED, drawn
    anew. None leaves its range.
    """
    found = {}
    for key, item in space.items():
        if draw.random() < RESAMPLED:
            place = draw.random()
        else:
            place = _place(item, values[key]) + draw.choice((-1, 1)) * _move(item)
        found[key] = _at(item, min(max(place, 0.0), 1.0))
    return found


def _place(item: Range | Choices, value: Any) -> float:
    """Where a value lies from the start of its range, 0, to the end, 1."""
    if isinstance(item, Choices):
        texts = [as_text(choice) for choice in item.values]
        return texts.index(as_text(value)) / (len(texts) - 1)
    if item.log:
        return math.log(value / item.low) / math.log(item.high / item.low)
    return (value - item.low) / (item.high - item.low)


def _at(item: Range | Choices, place: float) -> Any:
    """The value there; the nearest of choices, or of steps."""
    if isinstance(item, Choices):
        return item.values[round(place * (len(item.values) - 1))]
    if item.log:
        value = item.low * (item.high / item.low) ** place
    else:
        value = item.low + (item.high - item.low) * place
        if item.step is not None:
            value = item.low + min(round((value - item.low) / item.step), _steps(item)) * item.step
    return min(max(float(f"{value:.6g}"), item.low), item.high)


def _move(item: Range | Choices) -> float:
    """How far a value moves: to the next choice or step at least."""
    if isinstance(item, Choices):
        return 1 / (len(item.values) - 1)
    return MOVE if item.step is None else max(MOVE, item.step / (item.high - item.low))


def _steps(item: Range) -> int:
    return math.floor((item.high - item.low) / (item.step or 1.0) + 1e-9)
