"""[train] changes: values that are other ones from some step on, as a population finds them; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgetune.errors import shown
from edgetune.recipe.keys import check_value

if TYPE_CHECKING:
    from edgetune.recipe.recipe import Recipe

CHANGING_KEYS = ("train.learning_rate", "train.weight_decay", "lora.dropout")
"""What may be another value after a step: nothing else of a training hangs on it."""
AFTER = "after_step"
Changes = Sequence[Mapping[str, Any]]


def value_after(changes: Changes | None, key: str, step: int, start: Any) -> Any:
    """The value of a key like "train.learning_rate" in the step after `step`; `start` where it has not changed yet."""
    known = [change[key] for change in changes or () if key in change and change[AFTER] <= step]
    return known[-1] if known else start


def changes_problem(recipe: Recipe) -> str | None:
    """What is wrong with train.changes, or what another key has against them, if anything."""
    changes = recipe.train.changes
    if changes is None:
        return None
    if recipe.train.on_overfitting != "warn":
        return "train.changes: on_overfitting raises what they set; leave one of the two out"
    before = 0
    for change in changes:
        if problem := _problem(change, before):
            return f"train.changes: {problem}"
        before = change[AFTER]
    return None


def _problem(change: Mapping[str, Any], before: int) -> str | None:
    step = change.get(AFTER)
    if type(step) is not int or step < 1:
        return f"{AFTER} = {shown(step)} is not a step, from 1"
    if step <= before:
        return f"{AFTER} = {step} comes after {AFTER} = {before}; put them in order, each step once"
    if len(change) == 1:
        return f"nothing changes after step {step}; give a value for one of {', '.join(CHANGING_KEYS)}"
    for key, value in change.items():
        if key == AFTER:
            continue
        if key not in CHANGING_KEYS:
            return f"{key!r} cannot change while it trains; what can: {', '.join(CHANGING_KEYS)}"
        _, problem = check_value(key, value)
        if problem or isinstance(value, str):
            return f"{key} = {shown(value)}: {problem or 'is not a number'}"
    return None
