"""What the grid makes of a merged model for each model.task. One module a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgetune.quantize import classification, generation
from edgetune.recipe import Recipe


class Task(Protocol):
    """Merged models of one kind."""

    def as_deployed(self, merged: Path, recipe: Recipe, /) -> Any:
        """The merged folder as it will run, in torch: in the numbers of the grid of [export], float32, ready to answer.

        Rounded by [export] method where that needs no training rows, else by "search". Raises ModelError.
        """


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}
