"""What `edgetune export-best` sweeps, by task: every candidate of a merged model, scored in torch with the device's
numbers. A task more is a class in a module of its own and a line in SWEEPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from edgetune.bundle.candidates import Point
from edgetune.bundle.classification_sweep import ClassificationSweep
from edgetune.bundle.generation_sweep import GenerationSweep
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir


class Sweep(Protocol):
    """The candidates of one merged model."""

    def points(self) -> Iterator[Point]:
        """Each of them, its loss and bytes measured."""
        ...

    def build(self, point: Point, folder: Path) -> None:
        """The bundle of a point in an empty folder, not repaired and not verified."""
        ...

    def finish(self, point: Point, folder: Path) -> bool:
        """The bundle as `edgetune export` will make it, not verified; whether it is another than `build` makes."""
        ...


SWEEPS: Mapping[str, Callable[[Recipe, RunDir, Progress], Sweep]] = {
    "generation": GenerationSweep,
    "classification": ClassificationSweep,
}
