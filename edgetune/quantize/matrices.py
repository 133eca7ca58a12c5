"""A decoder's matrices: which of a checkpoint go on the grid, at how many bits, and each of them rounded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from edgetune.errors import ModelError
from edgetune.model.weights import EMBEDDING_TENSOR, HEAD_TENSOR, Place, find_tensors, read_tensor
from edgetune.quantize.gptq import inverse_factor
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.hessian import Rows, layer_hessians
from edgetune.quantize.methods import round_weight
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Method, Recipe
from edgetune.runtime.grid import BundleGrid, Grid

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one input, which a graph computes as one product."""


def round_all(
    merged: Path, grid: BundleGrid, int8_layers: Sequence[str] = (), *, method: Method = "search"
) -> dict[str, QuantizedMatrix]:
    """Every matrix of a merged folder that goes on the grid, rounded by itself; `int8_layers` as in grids_of."""
    places = find_tensors(merged)
    grids = grids_of(places, grid, int8_layers)
    return {name: round_weight(read_tensor(places[name]), own, method) for name, own in grids.items()}


def calibrate(merged: Path, grids: Sequence[Grid], recipe: Recipe, rows: Rows) -> list[dict[str, QuantizedMatrix]]:
    """For each grid the layers' matrices, rounded for what they are given on training rows (GPTQ).

    The model runs once over [export] calibration_rows of the rows, however many grids there are; what matrices of one
    input share is worked out once. Memory holds one layer of it, the Hessians of some, and the matrices.
    """
    places = find_tensors(merged)
    layers = [name for name, place in places.items() if _is_of_layer(name, place)]
    groups = {group[0]: group for group in (joined_with(name, layers) for name in layers)}
    found: list[dict[str, QuantizedMatrix]] = [{} for _ in grids]
    for first, hessian in layer_hessians(merged, groups, recipe, rows):
        factor = inverse_factor(hessian)
        for name, (grid, matrices) in product(groups[first], zip(grids, found, strict=True)):
            matrices[name] = round_weight(read_tensor(places[name]), grid, "gptq", factor)
    return found


def grids_of(places: Mapping[str, Place], grid: BundleGrid, int8_layers: Sequence[str] = ()) -> dict[str, Grid]:
    """Tensors of a checkpoint that are rounded -> the grid of each: its layers' matrices, embedding and head.

    `int8_layers`: names of matrices, or ends of them after a dot, that get 8 bits; what the graph joins (query, key and
    value; gate and up projection) gets them together. Raises ModelError for a name that no matrix has.
    """
    found: dict[str, Grid] = {}
    for name, place in places.items():
        if name in (EMBEDDING_TENSOR, HEAD_TENSOR):
            found[name] = grid.head
        elif _is_of_layer(name, place):
            found[name] = grid.with_bits(grid.bits)
    for wanted in int8_layers:
        names = [name for name in found if f".{name}".endswith(f".{wanted.removesuffix('.weight')}.weight")]
        if not names:
            raise ModelError(
                f"export.int8_layers: no matrix is called {wanted!r}", cure="e.g. model.layers.0.mlp.down_proj"
            )
        for name in names:
            found |= dict.fromkeys(joined_with(name, found), grid.with_bits(8))
    return found


def check_int8_layers(base: Path, recipe: Recipe) -> None:
    """Raises ModelError for a name in [export] int8_layers that no matrix of the base has."""
    grid = grid_of(recipe.export)
    if recipe.export.int8_layers and grid is not None and "export.int8_layers" not in recipe.idle_keys:
        grids_of(find_tensors(base), grid, recipe.export.int8_layers)


def joined_with(name: str, names: Iterable[str]) -> list[str]:
    """The matrices that share a product with this one in the graph, itself among them."""
    block, _, projection = name.removesuffix(".weight").rpartition(".")
    group = next((group for group in JOINED if projection in group), (projection,))
    return [f"{block}.{one}.weight" for one in group if f"{block}.{one}.weight" in names]


def _is_of_layer(name: str, place: Place) -> bool:
    """Whether a tensor is a matrix of one of the layers."""
    return len(place.shape) == 2 and re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight", name) is not None
