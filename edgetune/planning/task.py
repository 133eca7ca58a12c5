"""What a plan looks at for each task. Another task is another entry of TASKS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgetune.planning import classification, generation
from edgetune.planning.findings import Findings
from edgetune.recipe import Recipe
from edgetune.task_names import TaskName

if TYPE_CHECKING:
    from edgetune.data.formats import Example
    from edgetune.data.read import Split


class Task(Protocol):
    """The checks of a task: a module of functions."""

    def check_base(self, recipe: Recipe, base: Path, found: Findings) -> bool:
        """Whether a base, sound in itself, can be exported for the task; if not, other problems follow from that."""

    def labels(self, recipe: Recipe, /) -> Sequence[str]:
        """The labels of the training rows; none where the task has none. Raises DataError."""

    def encode(self, recipe: Recipe, examples: Sequence[Example], tokenizer: Any, /) -> Sequence[Any]:
        """Examples as tokens, however long. Raises DataError for one that the base has no vector for."""

    def count(self, recipe: Recipe, which: Split, examples: Sequence[Example], tokenizer: Any, /) -> dict[str, int]:
        """Counts over the first examples of a source: tokens, those too long, and what the task learns from.

        Raises DataError if there is nothing to learn from them.
        """

    def check_use(
        self,
        recipe: Recipe,
        base: Path,
        tokenizer: Any,
        labels: Sequence[str],
        found: Findings,
        scored_rows: int | None,
        /,
    ) -> None:
        """Whether some of the rows can be trained on, and what is to be scored can."""


TASKS: dict[TaskName, Task] = {"generation": generation, "classification": classification}
"""By model.task."""
