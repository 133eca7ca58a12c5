"""Workbenches whose trainings cost nothing, for tests of the search itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune.recipe import Recipe
from edgetune.tune.trial import Measured


@dataclasses.dataclass
class PaperBench:
    """A workbench whose trainings cost nothing: the loss is how far the learning rate is from 0.01, in decades.

    `seen` are the recipes it was given; `before` is called with each, and may raise.
    """

    room: int = 10**12
    learning_rate: float = 0.01
    base_sha256: str = "base"
    evaluations: int = 5
    before: Callable[[Recipe], object] = lambda _: None
    seen: list[Recipe] = dataclasses.field(default_factory=list)

    def peak_bytes(self, recipe: Recipe) -> int:
        """A GiB for each rank."""
        return recipe.lora.r * 1024**3

    def room_bytes(self, recipe: Recipe) -> int:  # noqa: ARG002
        """As set."""
        return self.room

    def measure(self, recipe: Recipe, folder: Path, *, progress: Any) -> Measured:
        """Its evaluations, then the score."""
        self.seen.append(recipe)
        self.before(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        loss = abs(math.log10(float(recipe.train.learning_rate)) + 2)
        for step in range(1, self.evaluations + 1):
            event = {"stage": "train", "step": step, "steps": self.evaluations, "tokens": step * 20}
            progress({**event, "eval_loss": loss + 1 / step, "train_loss": loss})
        return Measured(None, loss, loss, 10, 100, self.evaluations, 1.0, 1.0, self.peak_bytes(recipe))


class Lucky(PaperBench):
    """Only with the recipe's own seed does a learning rate other than 0.01 do well."""

    def measure(self, recipe: Recipe, folder: Path, *, progress: Any) -> Measured:
        """As told."""
        measured = super().measure(recipe, folder, progress=progress)
        is_first, is_own = recipe.train.learning_rate == 0.01, recipe.train.seed == 0
        return dataclasses.replace(measured, loss=1.0 if is_first else (0.5 if is_own else 1.5))
