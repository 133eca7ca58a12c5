"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import ModelError, RecipeError
from edgetune.export.architecture import EMBEDDING_TENSOR, HEAD_TENSOR
from edgetune.export.bundle import grid_of
from edgetune.export.fold import fold_decoder
from edgetune.export.moments import Rows, layer_moments
from edgetune.hashes import hash_tree
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quantize.folder import QuantizedFolder, write_quantized
from edgetune.quantize.gptq import error_spread
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.methods import round_weight
from edgetune.recipe import CALIBRATED, Method, Recipe
from edgetune.runtime.bundle import Grid

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one input, which a graph computes as one product."""


def quantize_decoder(
    merged: Path, out: Path, recipe: Recipe, grid: Grid, *, rows: Rows | None = None, progress: Any = None
) -> QuantizedFolder:
    """Write `out`: every matrix of the merged folder on the grid by [export] method; with `rows` repaired.

    Raises RunError for a full disk, ModelError for weights that are no numbers, RecipeError for a method that needs
    rows where there are none.
    """
    method = rounding(recipe, rows)
    bits = bits_of(find_tensors(merged), grid, recipe.export.int8_layers)
    record: dict[str, Any] = {"merged_sha256": hash_tree(merged), "method": method}
    vectors: Mapping[str, Tensor] = {}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".folded", dir=out.parent) as kept:
        source = merged
        if method == "awq" and rows is not None:
            source = Path(kept) / "folded"
            fold_decoder(merged, source, recipe, grid, rows, bits=bits)
            vectors = _changed_vectors(merged, source)
        matrices = _round(source, bits, recipe, grid, rows, method=method, record=record, progress=progress)
        if rows is not None and recipe.export.repair_steps and grid.bits < 8:
            from edgetune.train.repair import repair

            done = repair(source, matrices, rows.prepared, recipe, pad_id=rows.pad_id, progress=progress)
            matrices, vectors = dict(done.matrices), done.vectors
            record["repair"] = done.to_json()
    return write_quantized(out, matrices, vectors=vectors, record=record)


def rounding(recipe: Recipe, rows: Rows | None) -> Method:
    """The method of [export]; "auto" searches where there are no rows. Raises RecipeError."""
    table = recipe.export
    if rows is not None or table.rounding not in CALIBRATED:
        return table.rounding
    if table.method == "auto":
        return "search"
    raise RecipeError(f'export.method = "{table.method}": needs training rows', cure='give rows, or take "search"')


def _round(
    merged: Path,
    bits: Mapping[str, int],
    recipe: Recipe,
    grid: Grid,
    rows: Rows | None,
    *,
    method: Method,
    record: dict[str, Any],
    progress: Any,
) -> dict[str, QuantizedMatrix]:
    """Every matrix on the grid; those of layers, where they have the grid's bits, for the rows."""
    matrices: dict[str, QuantizedMatrix] = {}
    if rows is not None and recipe.export.on_grid_steps and grid.bits == 4:
        from edgetune.train.on_grid import train_on_grid

        trained = train_on_grid(merged, bits, recipe, grid, rows.prepared, pad_id=rows.pad_id, progress=progress)
        matrices, record["on_grid"] = dict(trained.matrices), trained.to_json()
    elif rows is not None and method in CALIBRATED:
        (matrices,) = calibrate(merged, [grid], recipe, rows)
        matrices = {name: matrix for name, matrix in matrices.items() if bits[name] == grid.bits}
    places = find_tensors(merged)
    return matrices | {name: round_one(places[name], bits[name], grid, method) for name in bits if name not in matrices}


def _changed_vectors(merged: Path, folded: Path) -> dict[str, Tensor]:
    """Norms and biases of a folded model that are not those of the merged one, float32."""
    before, after = find_tensors(merged), find_tensors(folded)
    vectors = {name: read_tensor(place).float() for name, place in after.items() if len(place.shape) == 1}
    return {name: value for name, value in vectors.items() if not value.equal(read_tensor(before[name]).float())}


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
    if recipe.export.int8_layers and grid is not None and not recipe.is_classifier:
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
