"""The rows that a target is measured on, encoded once and written to a file that every target's process reads."""

from __future__ import annotations

from pathlib import Path

from edgetune.data.read import Split
from edgetune.evaluate.rows import write_rows
from edgetune.evaluate.target import Target
from edgetune.evaluate.task import TASKS, Rows
from edgetune.recipe import Recipe

EVAL_SET_FILE = "rows.json"


def prepare_eval_set(recipe: Recipe, target: Target, out: Path, *, split: Split = "test") -> Rows:
    """The recipe's rows as a target reads them, written to out/rows.json.

    Raises DataError, ModelError, BundleError.
    """
    rows = TASKS[target.task].rows_of(target, recipe, split)
    write_rows(out / EVAL_SET_FILE, rows)
    return rows
