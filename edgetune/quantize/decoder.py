"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import RecipeError
from edgetune.hashes import hash_tree
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.folder import QuantizedFolder, write_quantized
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.matrices import bits_of, calibrate, round_one
from edgetune.quantize.moments import Rows
from edgetune.quantize.smooth import fold_decoder
from edgetune.recipe import CALIBRATED, Method, Recipe
from edgetune.runtime.bundle import Grid


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
        matrices = _round(source, bits, recipe, grid, rows, method=method)
        if rows is not None and recipe.export.repair_steps and grid.bits < 8:
            from edgetune.quantize.repair import repair

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
) -> dict[str, QuantizedMatrix]:
    """Every matrix on the grid; those of layers, where they have the grid's bits, for the rows."""
    matrices: dict[str, QuantizedMatrix] = {}
    if rows is not None and method in CALIBRATED:
        (matrices,) = calibrate(merged, [grid], recipe, rows)
        matrices = {name: matrix for name, matrix in matrices.items() if bits[name] == grid.bits}
    places = find_tensors(merged)
    return matrices | {name: round_one(places[name], bits[name], grid, method) for name in bits if name not in matrices}


def _changed_vectors(merged: Path, folded: Path) -> dict[str, Tensor]:
    """Norms and biases of a folded model that are not those of the merged one, float32."""
    before, after = find_tensors(merged), find_tensors(folded)
    vectors = {name: read_tensor(place).float() for name, place in after.items() if len(place.shape) == 1}
    return {name: value for name, value in vectors.items() if not value.equal(read_tensor(before[name]).float())}
