"""merge_base = "auto": which base to merge on, decided by measurement on the eval rows, after rounding.

An adapter was fitted to the dequantised 4-bit base; on some models the 16-bit original is the better one all the same,
and which it is nobody can tell beforehand. Both merges are made and rounded as export rounds them, before repair, which
starts from there and costs as much as an epoch. The original is taken where its eval loss is the lower one by more than
chance: else, as by default, the base that was trained.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetune.bundle.task import TASKS, RowLosses
from edgetune.evaluate.resample import Bootstrap, Interval
from edgetune.lora.merge import MergeBase, merge
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

LEAST_ROWS = 20
"""With fewer eval rows the difference is not told from chance: resamples of a handful are much alike."""


@dataclass(frozen=True)
class MergeChoice:
    """Which base won, and the eval loss of each merge on the grid of [export], nats per trained token (or text)."""

    merge_base: MergeBase
    losses: Mapping[str, float]
    difference: Interval
    """The original's loss less the trained one's, its interval over the rows."""
    rows: int


def choose_merge_base(recipe: Recipe, run_dir: RunDir, base: Path, *, progress: Progress | None = None) -> MergeChoice:
    """The base on which the run's adapter loses less; a tie goes to the trained one.

    Needs room for a second merged model beside the run's. Raises what merge, data and rounding raise.
    """
    bases: tuple[MergeBase, ...] = ("trained", "original")
    trained, original = (_losses(recipe, run_dir, base, one, progress) for one in bases)
    return choice_of(trained, original)


def choice_of(trained: RowLosses, original: RowLosses) -> MergeChoice:
    """The choice by what the two merges lose on the same rows."""
    counts = [count for _, count in trained]
    more = [other - one for (one, _), (other, _) in zip(trained, original, strict=True)]
    difference = Bootstrap().mean_interval(more, counts)
    is_better = len(more) >= LEAST_ROWS and difference[1] < 0
    losses = {"trained": _mean(trained), "original": _mean(original)}
    return MergeChoice("original" if is_better else "trained", losses, difference, len(more))


def _losses(recipe: Recipe, run_dir: RunDir, base: Path, merge_base: MergeBase, progress: Progress | None) -> RowLosses:
    """What the run's adapter, merged on a base and rounded, loses on each eval row."""
    task = TASKS[recipe.model.task]
    rounded = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, repair_steps=0))
    with tempfile.TemporaryDirectory(prefix=".merge.", dir=run_dir.path) as folder:
        merged = Path(folder) / "merged"
        merge(run_dir.adapter, base, merged, merge_base=merge_base, progress=progress)
        model = task.as_exported(merged, rounded, cache=run_dir.cache, progress=progress)
        return task.row_losses(model, merged, recipe, cache=run_dir.cache)


def _mean(losses: RowLosses) -> float:
    return sum(nats for nats, _ in losses) / max(1, sum(count for _, count in losses))
