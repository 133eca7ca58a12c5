"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.data.prepare import Prepared
from edgetune.export.architecture import EMBEDDING_TENSOR, HEAD_TENSOR
from edgetune.hashes import hash_tree
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quant.folder import QuantizedFolder, write_quantized
from edgetune.quant.grid import QuantizedMatrix, quantize
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import Grid


@dataclass(frozen=True)
class Rows:
    """The user's rows as training saw them."""

    prepared: Prepared
    pad_id: int


def quantize_decoder(
    merged: Path, out: Path, recipe: Recipe, grid: Grid, *, rows: Rows | None = None, progress: Any = None
) -> QuantizedFolder:
    """Write `out`: every matrix of the merged folder on the grid; with `rows` repaired as [export] says.

    Raises RunError for a full disk, ModelError for weights that are no numbers.
    """
    places = find_tensors(merged)
    bits = bits_of(places, grid)
    matrices = {name: _round(places[name], bits[name], grid) for name in bits}
    vectors: Mapping[str, Tensor] = {}
    record: dict[str, Any] = {"merged_sha256": hash_tree(merged)}
    if rows is not None and recipe.export.repair_steps and grid.bits == 4:
        from edgetune.train.repair import repair

        done = repair(merged, matrices, rows.prepared, recipe, pad_id=rows.pad_id, progress=progress)
        matrices, vectors = dict(done.matrices), done.vectors
        record["repair"] = done.to_json()
    return write_quantized(out, matrices, vectors=vectors, record=record)


def bits_of(places: Mapping[str, Place], grid: Grid) -> dict[str, int]:
    """Tensors of a checkpoint that go on the grid -> bits of their codes: its layers' matrices, embedding and head."""
    found = {}
    for name, place in places.items():
        if name in (EMBEDDING_TENSOR, HEAD_TENSOR):
            found[name] = grid.head_bits
        elif len(place.shape) == 2 and re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight", name):
            found[name] = grid.bits
    return found


def _round(place: Place, bits: int, grid: Grid) -> QuantizedMatrix:
    return quantize(read_tensor(place), bits=bits, block_size=grid.block_size, symmetric=grid.symmetric)
