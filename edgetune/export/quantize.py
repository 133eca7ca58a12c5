"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.errors import ModelError
from edgetune.export.architecture import EMBEDDING_TENSOR, HEAD_TENSOR
from edgetune.export.weights import CheckpointTensors, device_model
from edgetune.hashes import hash_tree
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quant.calibrate import input_moments, quantize_calibrated
from edgetune.quant.folder import QuantizedFolder, write_quantized
from edgetune.quant.grid import QuantizedMatrix, quantize
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import Grid

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one input, which a graph computes as one product."""
BATCH_ROWS = 8
"""Rows run at a time for calibration."""


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
    bits = bits_of(places, grid, recipe.export.int8_layers)
    matrices: dict[str, QuantizedMatrix] = {}
    record: dict[str, Any] = {"merged_sha256": hash_tree(merged)}
    if rows is not None and recipe.export.on_grid_steps and grid.bits == 4:
        from edgetune.train.on_grid import train_on_grid

        trained = train_on_grid(merged, bits, recipe, grid, rows.prepared, pad_id=rows.pad_id, progress=progress)
        matrices, record["on_grid"] = dict(trained.matrices), trained.to_json()
    elif rows is not None and recipe.export.calibration_rows and grid.bits == 4:
        (matrices,) = calibrate(merged, [grid], recipe, rows)
        matrices = {name: matrix for name, matrix in matrices.items() if bits[name] == grid.bits}
    matrices |= {name: round_one(places[name], bits[name], grid) for name in bits if name not in matrices}
    vectors: Mapping[str, Tensor] = {}
    if rows is not None and recipe.export.repair_steps and grid.bits == 4:
        from edgetune.train.repair import repair

        done = repair(merged, matrices, rows.prepared, recipe, pad_id=rows.pad_id, progress=progress)
        matrices, vectors = dict(done.matrices), done.vectors
        record["repair"] = done.to_json()
    return write_quantized(out, matrices, vectors=vectors, record=record)


def round_all(merged: Path, grid: Grid) -> dict[str, QuantizedMatrix]:
    """Every matrix of a merged folder that goes on the grid, rounded to the nearest."""
    places = find_tensors(merged)
    return {name: round_one(places[name], bits, grid) for name, bits in bits_of(places, grid).items()}


def calibrate(merged: Path, grids: Sequence[Grid], recipe: Recipe, rows: Rows) -> list[dict[str, QuantizedMatrix]]:
    """For each 4-bit grid the layers' matrices, rounded for what they are given on training rows (GPTQ).

    The model runs once over [export] calibration_rows of the rows, however many grids there are; memory holds one layer
    of it, the moments of some, and the matrices.
    """
    places = find_tensors(merged)
    model = device_model(merged, CheckpointTensors(places))
    named = {f"{name}.weight": module for name, module in model.named_modules()}
    linears = {name: named[name] for name in bits_of(places, grids[0]) if name.startswith("model.layers.")}

    def run() -> Iterator[Tensor]:
        for ids, mask in _batches(rows.prepared.train, recipe.export.calibration_rows, seed=recipe.train.seed):
            yield mask
            with torch.no_grad():
                model.model(input_ids=ids, use_cache=False)

    found: list[dict[str, QuantizedMatrix]] = [{} for _ in grids]
    for name, moments in input_moments(linears, run):
        weight = read_tensor(places[name])
        for grid, matrices in zip(grids, found, strict=True):
            matrices[name] = quantize_calibrated(
                weight, moments, bits=grid.bits, block_size=grid.block_size, symmetric=grid.symmetric
            )
    return found


def _batches(tokens: Tokens, count: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 and mask bool, (B, T) each, of so many rows drawn from all, filled up on the right."""
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:count]
    in_order = sorted(drawn.tolist(), key=lambda index: int(tokens.lengths[index]))
    for start in range(0, len(in_order), BATCH_ROWS):
        found = [torch.tensor(tokens[index].input_ids) for index in in_order[start : start + BATCH_ROWS]]
        mask = pad_sequence([torch.ones_like(ids) for ids in found], batch_first=True).bool()
        yield pad_sequence(found, batch_first=True), mask


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


def joined_with(name: str, names: Iterable[str]) -> list[str]:
    """The matrices that share a product with this one in the graph, itself among them."""
    block, _, projection = name.removesuffix(".weight").rpartition(".")
    group = next((group for group in JOINED if projection in group), (projection,))
    return [f"{block}.{one}.weight" for one in group if f"{block}.{one}.weight" in names]


def round_one(place: Place, bits: int, grid: Grid) -> QuantizedMatrix:
    """A matrix of the checkpoint, rounded to the nearest on the grid."""
    return quantize(read_tensor(place), bits=bits, block_size=grid.block_size, symmetric=grid.symmetric)
