"""The last part of training on the grid, as an option: merged weights are trained through their own rounding.

In the flow: merged model -> this loop -> 4-bit matrices, which repair may follow. Needs the weights in float32, which
repair does not; benchmarks/README.md has what either wins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetune.data.prepare import Prepared
from edgetune.model.base import load_merged
from edgetune.progress import Progress
from edgetune.quantize.grid import QuantizedMatrix, dequantize, quantize
from edgetune.quantize.quantization_aware import on_grid_matrices, put_linears_on_grid
from edgetune.quantize.repair import Look, RepairData, Schedule, Target, train_best
from edgetune.quantize.repairable import round_inputs_of
from edgetune.recipe import Recipe
from edgetune.runtime.grid import BundleGrid
from edgetune.train.loss import use_segments


@dataclass(frozen=True)
class OnGrid:
    """Matrices as they were trained, rounded to the nearest by their extremes; losses in nats per trained token."""

    matrices: Mapping[str, QuantizedMatrix]
    curve: tuple[Look, ...]
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The numbers, for quantized.json."""
        return {"curve": [(look.step, look.loss, look.kl) for look in self.curve], "wall_s": self.wall_s}


def train_on_grid(
    merged: Path,
    bits: Mapping[str, int],
    recipe: Recipe,
    grid: BundleGrid,
    rows: Prepared,
    *,
    pad_id: int,
    progress: Progress | None = None,
) -> OnGrid:
    """Train the merged folder's 4-bit matrices for [export] on_grid_steps; `bits` of each by name.

    Embedding and head are on their own grid meanwhile, frozen. Raises RunError if the loss is no number.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.train.seed)
    target = Target.of(merged, rows, recipe, pad_id)
    model = load_merged(merged)
    head = model.get_output_embeddings()
    for module in (model.get_input_embeddings(), head):
        rounded = quantize(module.weight, grid.head)
        module.weight = nn.Parameter(dequantize(rounded).to(module.weight.device), requires_grad=False)
    rounds_inputs = grid.accuracy_level == 4
    if rounds_inputs:
        round_inputs_of(head, grid.block_size)
    put_linears_on_grid(
        model,
        {name: count for name, count in bits.items() if name.startswith("model.layers.")},
        grid,
        rounds_inputs=rounds_inputs,
    )
    use_segments(model)
    schedule = Schedule("on_grid", recipe.export.on_grid_steps, recipe.export.on_grid_learning_rate)
    matrices, curve = train_best(
        model.to(model.device),
        lambda: on_grid_matrices(model),
        RepairData(recipe, rows, pad_id, target.teacher),
        target.truth,
        schedule=schedule,
        progress=progress,
    )
    return OnGrid(matrices, curve, time.monotonic() - started)
