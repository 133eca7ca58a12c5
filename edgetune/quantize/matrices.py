"""A decoder's matrices: which of a checkpoint go on the grid, at how many bits, and each of them rounded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model.weights import EMBEDDING_TENSOR, HEAD_TENSOR, Place, find_tensors, read_tensor
from edgetune.quantize.gptq import error_spread
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.methods import round_weight
from edgetune.quantize.moments import Rows, layer_moments
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Method, Recipe
from edgetune.runtime.bundle import Grid

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one input, which a graph computes as one product."""


def round_all(merged: Path, grid: Grid) -> dict[str, QuantizedMatrix]:
    """Every matrix of a merged folder that goes on the grid, rounded to the nearest."""
    places = find_tensors(merged)
    return {name: round_one(places[name], bits, grid) for name, bits in bits_of(places, grid).items()}


def calibrate(merged: Path, grids: Sequence[Grid], recipe: Recipe, rows: Rows) -> list[dict[str, QuantizedMatrix]]:
    """For each grid the layers' matrices, rounded for what they are given on training rows (GPTQ).

    The model runs once over [export] calibration_rows of the rows, however many grids there are; what matrices of one
    input share is worked out once. Memory holds one layer of it, the moments of some, and the matrices.
    """
    places = find_tensors(merged)
    layers = [name for name in bits_of(places, grids[0]) if name.startswith("model.layers.")]
    groups = {group[0]: group for group in (joined_with(name, layers) for name in layers)}
    found: list[dict[str, QuantizedMatrix]] = [{} for _ in grids]
    for first, moments in layer_moments(merged, groups, recipe, rows):
        spread = error_spread(moments)
        for name, (grid, matrices) in product(groups[first], zip(grids, found, strict=True)):
            matrices[name] = round_one(places[name], grid.bits, grid, "gptq", spread)
    return found


def bits_of(places: Mapping[str, Place], grid: Grid, int8_layers: Sequence[str] = ()) -> dict[str, int]:
    """Tensors of a checkpoint that go on the grid -> bits of their codes: its layers' matrices, embedding and head.

    `int8_layers`: names of matrices, or ends of them after a dot, that get 8 bits; what the graph joins (query, key and
    value; gate and up projection) gets them together. Raises ModelError for a name that no matrix has.
    """
    found = {}
    for name, place in places.items():
        if name in (EMBEDDING_TENSOR, HEAD_TENSOR):
            found[name] = grid.head_bits
        elif len(place.shape) == 2 and re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight", name):
            found[name] = grid.bits
    for wanted in int8_layers:
        names = [name for name in found if f".{name}".endswith(f".{wanted.removesuffix('.weight')}.weight")]
        if not names:
            raise ModelError(
                f"export.int8_layers: no matrix is called {wanted!r}", cure="e.g. model.layers.0.mlp.down_proj"
            )
        for name in names:
            found |= dict.fromkeys(joined_with(name, found), 8)
    return found


def check_int8_layers(base: Path, recipe: Recipe) -> None:
    """Raises ModelError for a name in [export] int8_layers that no matrix of the base has."""
    grid = grid_of(recipe.export)
    if recipe.export.int8_layers and grid is not None and "export.int8_layers" not in recipe.idle_keys:
        bits_of(find_tensors(base), grid, recipe.export.int8_layers)


def joined_with(name: str, names: Iterable[str]) -> list[str]:
    """The matrices that share a product with this one in the graph, itself among them."""
    block, _, projection = name.removesuffix(".weight").rpartition(".")
    group = next((group for group in JOINED if projection in group), (projection,))
    return [f"{block}.{one}.weight" for one in group if f"{block}.{one}.weight" in names]


def round_one(
    place: Place, bits: int, grid: Grid, method: Method = "search", spread: Tensor | None = None
) -> QuantizedMatrix:
    """A matrix of the checkpoint on the grid by a method, `spread` as in quantize.methods.round_weight."""
    settings: dict[str, Any] = {"bits": bits, "block_size": grid.block_size, "symmetric": grid.symmetric}
    return round_weight(read_tensor(place), method, spread, **settings)
