"""What can be measured: a target, and what its own process does with it once it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune.evaluate.distance import Distance
from edgetune.progress import Progress
from edgetune.recipe import ModelTable
from edgetune.task_names import TaskName

Kind = Literal["base", "tuned", "merged", "bundle", "gguf"]
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a Hugging Face folder that a model needs; cards and scripts beside them are not shipped."""


@dataclass(frozen=True)
class Target:
    """What is measured."""

    kind: Kind
    name: str
    """Names the files in results/."""
    path: Path
    """Base or merged: Hugging Face folder; tuned: adapter folder; bundle: bundle folder; gguf: the file."""
    model: ModelTable | None = None
    """How the torch targets are loaded: `base` is a local folder here; None for a bundle and a .gguf file."""
    task: TaskName = "generation"

    @property
    def shipped(self) -> tuple[Path, ...]:
        """Folders one would ship: base; base and adapter; merged folder; bundle; file."""
        return (Path(self.model.base), self.path) if self.kind == "tuned" and self.model else (self.path,)

    @property
    def shipped_suffixes(self) -> tuple[str, ...] | None:
        """Of the files in these folders that are shipped; None: all."""
        return None if self.kind in ("bundle", "gguf") else MODEL_SUFFIXES


@dataclass(frozen=True)
class Loaded:
    """A target in memory, with the rows it is measured on."""

    measure_speed: Callable[[], Any]
    """Of one row at a time; a frozen dataclass, None where no row can tell."""
    score: Callable[[Progress], tuple[Any, Sequence[Any]]]
    """The score and the answer to each row, frozen dataclasses."""
    measure_distance: Callable[[], Distance | None]
    """How far it is from the fine-tune; None where that is not known."""
