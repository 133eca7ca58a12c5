"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.hashes import hash_tree
from edgetune.model.memory import give_back_memory
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.folder import QuantizedFolder, write_quantized
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.hessian import Rows
from edgetune.quantize.matrices import calibrate, grids_of
from edgetune.quantize.methods import method_of, round_weight
from edgetune.quantize.smooth import smooth_decoder
from edgetune.recipe import CALIBRATED, Recipe
from edgetune.runtime.grid import BundleGrid


def quantize_decoder(
    merged: Path, out: Path, recipe: Recipe, grid: BundleGrid, *, rows: Rows | None = None, progress: Any = None
) -> QuantizedFolder:
    """Write `out`: every matrix of the merged folder on the grid by [export] method; with `rows` repaired.

    Raises RunError for a full disk, ModelError for weights that are no numbers, RecipeError for a method that needs
    rows where there are none.
    """
    method = method_of(recipe.export, has_rows=rows is not None)
    grids = grids_of(find_tensors(merged), grid, recipe.export.int8_layers)
    calibrated = [name for name, own in grids.items() if own.bits == grid.bits and name.startswith("model.layers.")]
    record: dict[str, Any] = {"merged_sha256": hash_tree(merged), "method": method}
    vectors: Mapping[str, Tensor] = {}
    matrices: dict[str, QuantizedMatrix] = {}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".smoothed", dir=out.parent) as kept:
        source = merged
        if method == "awq" and rows is not None:
            source = Path(kept) / "smoothed"
            smooth_decoder(merged, source, recipe, grid, rows, names=calibrated)
            vectors = _changed_vectors(merged, source)
        if rows is not None and method in CALIBRATED:
            (found,) = calibrate(source, [grid], recipe, rows)
            matrices = {name: matrix for name, matrix in found.items() if name in calibrated}
        places = find_tensors(source)
        for name in [name for name in grids if name not in matrices]:
            matrices[name] = round_weight(read_tensor(places[name]), grids[name], method)
        if rows is not None and recipe.export.repair_steps and grid.bits < 8:
            from edgetune.quantize.repair import repair

            give_back_memory()
            done = repair(source, matrices, rows.prepared, recipe, pad_id=rows.pad_id, progress=progress)
            matrices, vectors = dict(done.matrices), done.vectors
            record["repair"] = done.to_json()
            give_back_memory()
    return write_quantized(out, matrices, vectors=vectors, record=record)


def _changed_vectors(merged: Path, smoothed: Path) -> dict[str, Tensor]:
    """Norms and biases of a smoothed model that are not those of the merged one, float32."""
    before, after = find_tensors(merged), find_tensors(smoothed)
    vectors = {name: read_tensor(place).float() for name, place in after.items() if len(place.shape) == 1}
    return {name: value for name, value in vectors.items() if not value.equal(read_tensor(before[name]).float())}
