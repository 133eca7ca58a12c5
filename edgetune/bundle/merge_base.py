"""merge_base = "auto": which base to merge on, decided by measurement on the eval rows, after rounding.

An adapter was fitted to the dequantised 4-bit base; on some models the 16-bit original is the better one all the same,
and which it is nobody can tell beforehand. Both merges are made, put on the grid, and the lower eval loss decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetune.bundle.task import TASKS
from edgetune.lora.merge import MergeBase, merge
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir


@dataclass(frozen=True)
class MergeChoice:
    """Which base won, and the eval loss of each merge on the grid of [export], nats per trained token (or text)."""

    merge_base: MergeBase
    losses: Mapping[str, float]


def choose_merge_base(recipe: Recipe, run_dir: RunDir, base: Path, *, progress: Progress | None = None) -> MergeChoice:
    """The base on which the run's adapter loses less. Needs room for a second merged model beside the run's.

    Raises what merge and data raise.
    """
    losses: dict[str, float] = {}
    bases: tuple[MergeBase, ...] = ("trained", "original")
    for merge_base in bases:
        with tempfile.TemporaryDirectory(prefix=".merge.", dir=run_dir.path) as folder:
            merged = Path(folder) / "merged"
            merge(run_dir.adapter, base, merged, merge_base=merge_base, progress=progress)
            losses[merge_base] = TASKS[recipe.model.task].loss_on_grid(merged, recipe, cache=run_dir.cache)
    return MergeChoice(min(bases, key=lambda name: losses[name]), losses)  # a tie goes to the trained one
