"""What a task means for the model: the kind of base that it fine-tunes, and the head that it puts on it.

Another task is another entry of TASKS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgetune.errors import ModelError
from edgetune.model import classification, decoder, encoder
from edgetune.recipe import Recipe
from edgetune.task_names import TaskName


class Base(Protocol):
    """A kind of base: a module of names and a function."""

    NAME: str
    """With its article, for messages."""
    KINDS: tuple[str, ...]
    """Each model_type that is of this kind and no other."""
    AUTO_CLASS: str
    """transformers' class that loads it."""

    def check_kind(self, path: Path, kind: str, config: Mapping[str, Any], /) -> None:
        """Raises ModelError for a folder whose config.json has a model_type that EdgeTune does not know as such."""


def _no_head(_recipe: Recipe, _labels: int, _size: int) -> int:
    return 0


@dataclass(frozen=True)
class Task:
    """What models of a task have of their own."""

    base: Base
    head_parameters: Callable[[Recipe, int, int], int] = _no_head
    """Weights of the head beside the base's own, from recipe, labels and hidden size."""
    head_bytes: Callable[[Recipe, int, int], int] = _no_head
    """What that head's loss holds in a training step, from recipe, labels and weights."""


TASKS: dict[TaskName, Task] = {
    "generation": Task(decoder),
    "classification": Task(encoder, classification.head_parameters, classification.head_bytes),
}
"""By model.task."""


def task_of(kind: Any) -> TaskName:
    """The first task that a base of this model_type is for; generation, of all that no other task's bases name."""
    return next((name for name, task in TASKS.items() if kind in task.base.KINDS), "generation")


def check_kind(path: Path, config: Mapping[str, Any], task: TaskName) -> None:
    """Raises ModelError for a base that is none for the task, or of a model_type that EdgeTune does not know."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{path / 'config.json'}: no model_type", cure="give the folder of a transformers model")
    wanted, own = TASKS[task].base, task_of(kind)
    if TASKS[own].base is not wanted and kind in TASKS[own].base.KINDS:  # decoders of some of these names exist too
        raise ModelError(f"{path}: '{kind}' is {TASKS[own].base.NAME}", cure=f'set model.task = "{own}"')
    wanted.check_kind(path, kind, config)
