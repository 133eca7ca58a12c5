"""A merged decoder as it will run, without a bundle: a torch model that computes with the numbers of the grid.

Each weight is rounded by itself. The calibration and the repair that an export adds come on top: what this model scores
is mostly below what the bundle does, and need not rank two models as their bundles do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.model.base import load_merged
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.matrices import round_all
from edgetune.quantize.methods import method_of, without_rows
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Recipe


def as_deployed(merged: Path, recipe: Recipe) -> Any:
    """The merged folder on the grid of [export], ready to answer, float32.

    With accuracy_level 4 activations are rounded to 8 bits too, as MatMulNBits rounds them. Memory: the integers in
    their own bits. Raises ModelError.
    """
    grid = grid_of(recipe.export)
    if grid is None:
        return load_merged(merged)
    method = without_rows(method_of(recipe.export))
    matrices = round_all(merged, grid, recipe.export.int8_layers, method=method)
    model = load_on_grid(merged, matrices, rounds_inputs=grid.accuracy_level == 4)
    model.config._attn_implementation = "sdpa"
    return model
