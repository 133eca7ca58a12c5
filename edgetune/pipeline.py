"""The stages in their order: plan, train, evaluate, merge, evaluate, export and verify, evaluate, table.

Each stage hands over by files in the run folder alone; one whose inputs have not changed since it finished is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run, as results/summary.json holds it."""

    run_dir: RunDir
    table: str
    """The table as text."""
    summary: Mapping[str, Any]


def run(recipe: Recipe, run_dir: RunDir, *, force: bool = False, progress: Progress | None = None) -> RunResult:
    """Take a recipe through all stages in its run folder.

    Raises RunError for a folder of another recipe (unless `force`), OutOfMemoryError when the estimate exceeds [budget],
    CheckError when the bundle is not what was trained, and what the stages raise.
    """
    ...
