"""A merged decoder -> its weights on the grid, rounded and repaired; what the graph is then made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.export.architecture import EMBEDDING_TENSOR, HEAD_TENSOR
from edgetune.export.weights import CheckpointTensors, device_model
from edgetune.hashes import hash_tree
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quant.calibrate import input_moments, quantize_calibrated
from edgetune.quant.folder import QuantizedFolder, write_quantized
from edgetune.quant.grid import QuantizedMatrix, quantize
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import Grid

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
    bits = bits_of(places, grid)
    matrices: dict[str, QuantizedMatrix] = {}
    if rows is not None and recipe.export.calibration_rows and grid.bits == 4:
        matrices |= _calibrated(merged, places, bits, recipe, grid, rows)
    matrices |= {name: _round(places[name], bits[name], grid) for name in bits if name not in matrices}
    vectors: Mapping[str, Tensor] = {}
    record: dict[str, Any] = {"merged_sha256": hash_tree(merged)}
    if rows is not None and recipe.export.repair_steps and grid.bits == 4:
        from edgetune.train.repair import repair

        done = repair(merged, matrices, rows.prepared, recipe, pad_id=rows.pad_id, progress=progress)
        matrices, vectors = dict(done.matrices), done.vectors
        record["repair"] = done.to_json()
    return write_quantized(out, matrices, vectors=vectors, record=record)


def round_all(merged: Path, grid: Grid) -> dict[str, QuantizedMatrix]:
    """Every matrix of a merged folder that goes on the grid, rounded to the nearest."""
    places = find_tensors(merged)
    return {name: _round(places[name], bits, grid) for name, bits in bits_of(places, grid).items()}


def _calibrated(
    merged: Path, places: Mapping[str, Place], bits: Mapping[str, int], recipe: Recipe, grid: Grid, rows: Rows
) -> dict[str, QuantizedMatrix]:
    """The 4-bit matrices of the layers, rounded for what they are given on training rows (GPTQ)."""
    model = device_model(merged, CheckpointTensors(places))
    linears = {
        f"{name}.weight": module for name, module in model.named_modules() if bits.get(f"{name}.weight") == grid.bits
    }
    linears = {name: module for name, module in linears.items() if name.startswith("model.layers.")}

    def run() -> Iterator[Tensor]:
        for ids, mask in _batches(rows.prepared.train, recipe.export.calibration_rows, seed=recipe.train.seed):
            yield mask
            with torch.no_grad():
                model.model(input_ids=ids, use_cache=False)

    return {
        name: quantize_calibrated(
            read_tensor(places[name]), moments, bits=grid.bits, block_size=grid.block_size, symmetric=grid.symmetric
        )
        for name, moments in input_moments(linears, run)
    }


def _batches(tokens: Tokens, count: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 and mask bool, (B, T) each, of so many rows drawn from all, filled up on the right."""
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:count]
    in_order = sorted(drawn.tolist(), key=lambda index: int(tokens.lengths[index]))
    for start in range(0, len(in_order), BATCH_ROWS):
        found = [torch.tensor(tokens[index].input_ids) for index in in_order[start : start + BATCH_ROWS]]
        mask = pad_sequence([torch.ones_like(ids) for ids in found], batch_first=True).bool()
        yield pad_sequence(found, batch_first=True), mask


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
