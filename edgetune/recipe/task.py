"""What a task means for a recipe. Another task is another entry of TASKS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgetune.metric_names import LABEL_METRICS, TEXT_METRICS
from edgetune.recipe.classification import CLASSIFIER_DEFAULTS, DECODER_KEYS, ClassifyTable, problem_with_classifier
from edgetune.task_names import TaskName

if TYPE_CHECKING:
    from edgetune.recipe.recipe import Recipe


def _nothing(_recipe: Recipe) -> None:
    return None


@dataclass(frozen=True)
class Task:
    """What recipes of a task have of their own."""

    metrics: tuple[str, ...]
    """What evaluate.metric can be."""
    learned: str
    """What the loss is a mean over, one of them."""
    writes_tokens: bool
    """Whether answers are written, one token after another."""
    tables: Mapping[str, type] = field(default_factory=dict)
    """Tables that only this task has, by name."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Table -> key -> what it is without a word in the recipe; other keys are as in the tables."""
    idle_keys: tuple[str, ...] = ()
    """What changes nothing: a recipe that is shared between tasks may have these keys."""
    problem: Callable[[Recipe], str | None] = _nothing
    """What in a recipe cannot be of this task, if anything."""


TASKS: dict[TaskName, Task] = {
    "generation": Task(TEXT_METRICS, "trained token", writes_tokens=True),
    "classification": Task(
        LABEL_METRICS,
        "text",
        writes_tokens=False,
        tables={"classify": ClassifyTable},
        defaults=CLASSIFIER_DEFAULTS,
        idle_keys=DECODER_KEYS,
        problem=problem_with_classifier,
    ),
}
"""By model.task."""
OWN_TABLES = {name: table for task in TASKS.values() for name, table in task.tables.items()}
"""Tables that only one task has, by name."""
