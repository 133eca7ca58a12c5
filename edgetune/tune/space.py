"""The search space: which keys of a recipe may take which values. First step of a study, before anything is loaded.

A space maps keys like "train.learning_rate" to a range or to choices. Every end of a range and every choice is held
against the recipe's own checks, so that what cannot stand is known before the first trial.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.errors import RecipeError, shown
from edgetune.model.fit import with_values
from edgetune.recipe import MOST, Recipe, check_value, number_kind, problem_with, unknown_key
from edgetune.tune import task
from edgetune.tune.reach import useless

GRID_POINTS = 3
"""Of a range without a step, in a grid."""
FIXED_TABLES = ("tune", "evaluate", "budget")
FIXED_KEYS = {
    "model.base": "all trials share one base",
    "model.revision": "all trials share one base",
    "model.task": "all trials share one task",
    "model.trust_remote_code": "that is for you to say",
    "data.train": "all trials learn from the same rows",
    "data.eval": "scores on other rows cannot be compared",
    "data.test": "the test rows have no part in a search",
    "data.eval_fraction": "scores on other rows cannot be compared",
    "data.format": "all trials learn from the same rows",
    "data.columns": "all trials learn from the same rows",
    **task.FIXED_KEYS,
    "export.min_gain_kept": "it changes no model",
    "export.max_gain_kept": "it changes no model",
    "export.max_kl": "it changes no model",
    "export.max_changed_rows": "it changes no model",
    "train.trackers": "it changes no model",
    "train.checkpoint_steps": "it changes no model",
    "train.changes": "they are found by a population",
}
"""Keys that are the same in all trials, and why."""
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; `log`: spread evenly by their logarithm; `step`: low, low + step ..."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_integer: bool = False

    def points(self, count: int = GRID_POINTS) -> list[Any]:
        """The steps of the range, or so many of its values, evenly from end to end."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            found = [self.low + number * self.step for number in range(steps + 1)]
        elif self.log:
            ratio = self.high / self.low
            found = [self.low * ratio ** (number / (count - 1)) for number in range(count)]
        else:
            found = [self.low + (self.high - self.low) * number / (count - 1) for number in range(count)]
        if self.is_integer:
            return sorted({round(value) for value in found})
        return [min(max(float(f"{value:.6g}"), self.low), self.high) for value in found]

    def has(self, value: Any) -> bool:
        """Whether a value lies in the range, on one of its steps."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.is_integer and value != round(value):
            return False
        place = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(place - round(place)) < 1e-6 if self.step is not None else True


@dataclass(frozen=True)
class Choices:
    """Values of any kind, in no order."""

    values: tuple[Any, ...]

    def points(self, count: int = GRID_POINTS) -> list[Any]:  # noqa: ARG002
        """All of them."""
        return list(self.values)

    def has(self, value: Any) -> bool:
        """Whether it is one of them."""
        return any(same(value, choice) for choice in self.values)


Space = Mapping[str, Range | Choices]


def same(one: Any, other: Any) -> bool:
    """Whether two values of a key are the same to a recipe: true is not 1, a tuple is its list."""
    return as_text(one) == as_text(other)


def as_text(value: Any) -> str:
    """A value as JSON: what it is in a study where that holds only texts and numbers."""
    return json.dumps(float(value) if type(value) is int else value)


def read_space(recipe: Recipe, *, learning_rate: float | None = None) -> Space:
    """The space that [tune] space asks for; without it the default one, for a recipe of this learning rate.

    Raises RecipeError with one line for each problem.
    """
    asked = recipe.tune.space
    space: dict[str, Range | Choices] = {} if asked else dict(default_space(recipe, learning_rate))
    problems: list[str] = []
    for name, value in asked.items():
        try:
            space[name] = _read(recipe, name, value)
        except _Refusal as refusal:
            problems.append(f'tune.space."{name}": {refusal}')
    if not problems and recipe.tune.sampler == "cmaes" and not any(isinstance(item, Range) for item in space.values()):
        problems.append('tune.sampler = "cmaes": seeks in ranges, and the space has only choices; take "tpe"')
    problems = problems or useless(recipe, space)
    if len(problems) == 1:
        raise RecipeError(f"{recipe.name}: {problems[0]}")
    if problems:
        raise RecipeError("\n".join([f"{recipe.name}: {len(problems)} problems", *problems]), problems=problems)
    return space


def default_space(recipe: Recipe, learning_rate: float | None) -> Space:
    """What matters most, around the recipe's values: learning rate, batch, epochs, rank, dropout, weight decay, warm-up
    and schedule. `learning_rate` is what "auto" is for the base.
    """
    train, lora = recipe.train, recipe.lora
    rate = train.learning_rate if train.learning_rate != "auto" else learning_rate
    space: dict[str, Range | Choices] = {}
    if rate is not None:
        space["train.learning_rate"] = Range(float(f"{rate / 8:.3g}"), float(f"{rate * 8:.3g}"), log=True)
    space["train.batch_size"] = Choices(tuple(_around(recipe.batch_size)))
    if train.max_steps is None:
        space["train.epochs"] = Choices(tuple(sorted({max(0.5, train.epochs / 2), train.epochs, train.epochs * 2})))
    if lora.init_from is None:
        space["lora.r"] = Choices(tuple(_around(lora.r)))
        space["lora.dropout"] = Range(0.0, 0.2)
    space["train.weight_decay"] = Range(0.0, 0.1)
    space["train.warmup_ratio"] = Range(0.0, 0.2)
    space["train.schedule"] = Choices(("constant", "linear", "cosine"))
    return space


def recipe_with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with values of a space, lists as the tuples that a recipe holds. Raises RecipeError if it refuses."""
    checked = {}
    for name, value in values.items():
        checked[name], problem = check_value(name, value)
        if problem:
            raise RecipeError(f"{recipe.name}: {name}: {problem}")
    changed = with_values(recipe, checked)
    if problem := problem_with(changed):
        raise RecipeError(f"{recipe.name}: {problem}")
    return changed


def values_of(recipe: Recipe, space: Space, *, learning_rate: float | None = None) -> dict[str, Any]:
    """The recipe's own values of a space's keys, those that lie in it; `learning_rate` is what "auto" is."""
    found = {}
    for name, item in space.items():
        table, _, key = name.partition(".")
        value = getattr(getattr(recipe, table), key)
        if value == "auto":
            value = {"train.learning_rate": learning_rate, "train.batch_size": recipe.batch_size}.get(name, value)
        if item.has(value):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def describe(space: Space) -> Any:
    """The space as JSON has it."""
    return json.loads(json.dumps({name: dataclasses.asdict(item) for name, item in space.items()}))


class _Refusal(Exception):
    """Why a key of the space cannot stand."""


def _read(recipe: Recipe, name: str, value: Any) -> Range | Choices:
    table, _, _ = name.partition(".")
    if isinstance(value, Mapping) and not name.count(".") and not set(value) & set(RANGE_KEYS):
        raise _Refusal(f'put the whole name in quotes: space."{name}.{next(iter(value), "key")}" = ...')
    if table in FIXED_TABLES:
        raise _Refusal(f"[{table}] is the same in all trials")
    if name in FIXED_KEYS:
        raise _Refusal(f"cannot be searched: {FIXED_KEYS[name]}")
    if problem := unknown_key(name):
        raise _Refusal(problem)
    if reason := task.IDLE_KEYS[recipe.model.task].get(name):
        raise _Refusal(reason)
    if name == "train.epochs" and recipe.train.max_steps is not None:
        raise _Refusal("has no effect beside train.max_steps; leave one of the two out")
    item = _choices(name, value) if isinstance(value, list) else _range(name, value)
    for choice in item.values if isinstance(item, Choices) else (item.low, item.high):
        changed = with_values(recipe, {name: _checked(name, choice)})
        if problem := problem_with(changed):
            raise _Refusal(f"{shown(choice)} does not go with the recipe: {problem}")
    return item


def _choices(name: str, values: list[Any]) -> Choices:
    if not values:
        raise _Refusal("is an empty list; give at least two choices")
    checked = [_stored(_checked(name, value)) for value in values]
    if len({as_text(value) for value in checked}) < len(checked):
        raise _Refusal("names a choice twice")
    if len(checked) == 1:
        raise _Refusal("has one choice only; set it in its own table instead")
    return Choices(tuple(checked))


def _range(name: str, value: Any) -> Range:
    kind = number_kind(name)
    if kind is None:
        raise _Refusal(f"{shown(value)} is no list; of this key give a list of choices")
    if not isinstance(value, Mapping):
        raise _Refusal(f"{shown(value)} is neither a list of choices nor {{ low = ..., high = ... }}")
    for key in value:
        if key not in RANGE_KEYS:
            raise _Refusal(f"{key!r} is no key of a range; known: {', '.join(RANGE_KEYS)}")
    for key in ("low", "high"):
        if key not in value:
            raise _Refusal(f"has no {key}")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise _Refusal(f"log = {shown(log)} is not true or false")
    for key in ("low", "high", "step"):
        if key in value and not _is_number(value[key], kind):
            is_endless = kind is float and value[key] in (math.inf, -math.inf)
            wanted = "must be finite" if is_endless else f"is not {'an integer' if kind is int else 'a number'}"
            raise _Refusal(f"{key} = {shown(value[key])} {wanted}")
    low, high = kind(value["low"]), kind(value["high"])
    _refuse_order(low, high, step, log)
    return Range(low, high, log, None if step is None else kind(step), is_integer=kind is int)


def _refuse_order(low: float, high: float, step: float | None, log: bool) -> None:
    if low > high:
        raise _Refusal(f"low = {low:g} is greater than high = {high:g}")
    if low == high:
        raise _Refusal(f"low and high are both {low:g}; set it in its own table instead")
    if log and low <= 0:
        raise _Refusal(f"log needs low above 0, it is {low:g}")
    if log and step is not None:
        raise _Refusal("has both log and step; leave one of the two out")
    if step is not None and not 0 < step <= high - low:
        raise _Refusal(f"step = {step:g} must lie between 0 and high - low = {high - low:g}")


def _is_number(value: Any, kind: type) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return type(value) in kinds and abs(value) <= MOST


def _checked(name: str, value: Any) -> Any:
    converted, problem = check_value(name, value)
    if problem:
        raise _Refusal(problem)
    return converted


def _stored(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _around(value: int) -> Iterable[int]:
    """Half, the value itself, twice and four times it."""
    return sorted({max(1, value // 2), value, 2 * value, 4 * value})
