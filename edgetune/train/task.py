"""What a training does with its rows for each model.task: the one thing in which tasks differ for the loop.

A task holds the rows, puts an epoch of them in order, and takes their loss. set_up makes the recipe's, the loop calls
it. One module a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgetune.data.prepare import Prepared
from edgetune.recipe import Recipe
from edgetune.train.classification import Classification
from edgetune.train.fit import Data
from edgetune.train.generation import Generation


class Task(Data, Protocol):
    """Rows and what is learned from them."""

    def __init__(self, recipe: Recipe, prepared: Prepared[Any], pad_id: int) -> None:
        """`recipe`: "auto" decided where memory decides it; `pad_id` fills batches up."""

    @property
    def recipe(self) -> Recipe:
        """What is asked for, "auto" decided where memory decides it."""

    @property
    def prepared(self) -> Prepared[Any]:
        """The data: `train` and `eval` rows, each with a fingerprint, and a report."""

    def head_share(self, learning_rate: float, /) -> float:
        """How many times the learning rate of the adapter a new head learns with."""

    def complete(self, model: Any) -> Any:
        """The adapted base, ready to train: with its head, with its attention."""

    def evaluate(
        self, model: Any, part: slice = slice(None), pieces: int = 1, *, rows: Any = None
    ) -> tuple[float, int]:
        """Summed loss over the eval rows, or over `rows`, dropout off, and what it sums over; `part` of their batches.

        `pieces`: into how many each batch is cut, which changes nothing but the memory.
        """

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter folder, all or nothing. Raises RunError."""


TASKS: Mapping[str, type[Task]] = {"generation": Generation, "classification": Classification}
