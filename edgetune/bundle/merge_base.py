"""merge_base = "auto": which base to merge on, decided by measurement on the eval rows, after rounding.

An adapter was fitted to the dequantised 4-bit base; on some models the 16-bit original is the better one all the same,
and which it is nobody can tell beforehand. Both merges are made, put on the grid, and the lower eval loss decides.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgetune.data.prepare import longest_row, prepare
from edgetune.lora.merge import MergeBase, merge
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.classifier import load_classifier
from edgetune.quantize.classification import dequantized, put_on_grid
from edgetune.quantize.matrices import round_all
from edgetune.quantize.precisions import grid_of
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.train.classification import Classification

Progress = Callable[[Mapping[str, Any]], None]


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
            losses[merge_base] = _loss(recipe, run_dir, merged)
    return MergeChoice(min(bases, key=lambda name: losses[name]), losses)  # a tie goes to the trained one


def _loss(recipe: Recipe, run_dir: RunDir, merged: Path) -> float:
    """Eval loss of a merged folder, rounded to the nearest on the recipe's grid."""
    tokenizer, grid = load_tokenizer(merged), grid_of(recipe.export)
    pad_id = padding_id(tokenizer)
    if recipe.is_classifier:
        return _classifier_loss(recipe, run_dir, merged, tokenizer, pad_id)
    rows = prepare(recipe, tokenizer, cache=run_dir.cache)
    if grid is None:
        return eval_loss(load_merged(merged), rows, recipe, pad_id)
    model = load_for_loss(merged, round_all(merged, grid), rounds_inputs=grid.accuracy_level == 4)
    return eval_loss(model, rows, recipe, pad_id)


def _classifier_loss(recipe: Recipe, run_dir: RunDir, merged: Path, tokenizer: Any, pad_id: int) -> float:
    classifier, grid = load_classifier(load_merged(merged), merged), grid_of(recipe.export)
    if grid is not None:
        same = dataclasses.replace(grid, head_bits=grid.bits)
        classifier = dequantized(classifier, put_on_grid(classifier, same))
    length = longest_row(recipe, merged, tokenizer)
    prepared = prepare(recipe, tokenizer, max_length=length, cache=run_dir.cache)
    with torch.no_grad():
        total, count = Classification(recipe, prepared, pad_id).evaluate(classifier)
    return total / max(count, 1)
