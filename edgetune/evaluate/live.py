"""Scores of a model that is in memory: what a search asks after each trial, and cross-validation after each fold.

The rows, the scoring and the numbers are those of the evaluate stage; only the process of its own is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune.evaluate.task import TASKS, Score
from edgetune.evaluate.task import Rows as Rows
from edgetune.progress import Progress
from edgetune.recipe import Recipe


def eval_rows(recipe: Recipe, base: Path, *, labels: Sequence[str] = ()) -> Rows:
    """The recipe's eval rows as its base reads them, at most evaluate.max_rows; no test row is looked at.

    `labels`: those of a head, in the order of its logits. Raises DataError, ModelError.
    """
    return TASKS[recipe.model.task].rows_of_base(base, labels, recipe, "eval")


def held_out_rows(recipe: Recipe, base: Path, *, labels: Sequence[str] = ()) -> Rows:
    """The recipe's test rows in the same way; labels are calibrated on its eval rows. Raises as eval_rows."""
    return TASKS[recipe.model.task].rows_of_base(base, labels, recipe, "test")


def score_live(model: Any, tokenizer: Any, rows: Rows, *, progress: Progress | None = None) -> Score:
    """Scores of a model on rows of its task; its weights stay as they are, its mode becomes eval."""
    return answer_live(model, tokenizer, rows, progress=progress)[0]


def answer_live(
    model: Any, tokenizer: Any, rows: Rows, *, progress: Progress | None = None
) -> tuple[Score, Sequence[Any]]:
    """Scores of a model as `score_live` gives them, and the answer to each row, a frozen dataclass."""
    return TASKS[rows.task].score_live(model, tokenizer, rows, progress=progress)


def with_adapter(base: Any, recipe: Recipe, folder: Path) -> Any:
    """A lent base with what an adapter folder holds, ready to be scored. Raises ModelError."""
    return TASKS[recipe.model.task].with_adapter(base, folder, recipe)
