"""A merged decoder as it will run, without a bundle: a torch model that computes with the numbers of the grid.

Each weight is rounded by itself. The calibration and the repair that an export adds come on top: what this model scores
is mostly below what the bundle does, and need not rank two models as their bundles do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.model.base import load_merged
from edgetune.model.weights import find_tensors
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.matrices import bits_of, round_one
from edgetune.quantize.methods import without_rows
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
    places = find_tensors(merged)
    bits = bits_of(places, grid, recipe.export.int8_layers)
    method = without_rows(recipe.export.rounding)
    matrices = {name: round_one(places[name], count, grid, method) for name, count in bits.items()}
    model = load_on_grid(merged, matrices, rounds_inputs=grid.accuracy_level == 4)
    model.config._attn_implementation = "sdpa"
    return model
