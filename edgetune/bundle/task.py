"""What export must know of a task: one module each. A task more is such a module and a line in TASKS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgetune.bundle import classification, generation
from edgetune.bundle.place import ExportResult
from edgetune.model.classifier import SPEC
from edgetune.progress import Progress
from edgetune.quantize.layer_change import LayerChange
from edgetune.recipe import ExportTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import Bundle

RowLosses = list[tuple[float, int]]
"""Of each row its nats, and the trained tokens (or 1, of a text) that they are the sum over."""


class Task(Protocol):
    """How a merged model of one task becomes a bundle, and what may be asked of that bundle."""

    KIND: str
    """What people call such a model."""
    IS_DECODER: bool
    """Whether its scales can be repaired, and its adapter kept beside the base."""

    def check_merged(self, merged: Path) -> None:
        """Raises ModelError for a merged folder that cannot be exported, before any work."""

    def as_trained(self, recipe: Recipe, merged: Path) -> Recipe:
        """The recipe of a merged folder that lies in no run, with what the folder itself says of its training."""

    def export(
        self, merged: Path, out: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None
    ) -> ExportResult:
        """The bundle `out` of a merged folder, verified on the recipe's rows; `cache`: a folder for their tokens.

        Raises CheckError for a bundle that does not hold, ModelError, DataError, RunError for what is in its place.
        """

    def build_again(self, bundle: Bundle, merged: Path, folder: Path, recipe: Recipe) -> Bundle:
        """The merged model of a bundle once more, in an empty folder, as another recipe asks; not verified."""

    def as_exported(self, merged: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None) -> Any:
        """The merged folder in torch with the numbers that its bundle would hold, as `export` rounds and repairs them.

        Raises as `export` does, but nothing is verified.
        """

    def row_losses(self, model: Any, merged: Path, recipe: Recipe, *, cache: Path) -> RowLosses:
        """What a model as `as_exported` gives it loses on each of the recipe's eval rows, or on so many of them."""

    def layer_changes(self, bundle: Bundle, run_dir: RunDir, base: Path) -> Iterator[LayerChange]:
        """What became of the fine-tune in each matrix of a run's bundle; nothing where that cannot be told."""


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}


def task_of(merged: Path) -> str:
    """The task of a merged folder, by what lies in it."""
    return "classification" if (merged / SPEC).is_file() else "generation"


def decisive_tables(recipe: Recipe) -> tuple[Any, ...]:
    """The tables of a recipe that decide what its merged model becomes, whichever its task."""
    judging = ("min_gain_kept", "max_gain_kept", "max_kl", "max_changed_rows")  # these make no bundle
    export = dataclasses.replace(recipe.export, **{name: getattr(ExportTable, name) for name in judging})
    return export, recipe.data, recipe.classify
