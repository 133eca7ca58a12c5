"""What an adapter is for each model.task: what of the base it needs, and what lies beside it. One module a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from edgetune.lora import classification, generation
from edgetune.model.base import is_encoder
from edgetune.recipe import Recipe


class Task(Protocol):
    """Adapters of one kind."""

    FILES: tuple[str, ...]
    """Names of files beside an adapter that a merged model needs as well."""

    def check_base(self, base: Path, recipe: Recipe, /) -> None:
        """Raises ModelError if a base's files lack what the recipe asks of it."""

    def drop_unused(self, model: Any, recipe: Recipe, /) -> None:
        """Take off a loaded base what the recipe has no use for: it would be adapted and exported for nothing."""

    def labels_of(self, folder: Path, /) -> tuple[str, ...]:
        """The labels that the adapter in a folder tells apart, in the order of its logits; () where it writes text.

        Raises ModelError.
        """


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}


def task_of(base: Path) -> Literal["generation", "classification"]:
    """The task that adapters of the base in a folder are for. Raises ModelError."""
    return "classification" if is_encoder(base) else "generation"
