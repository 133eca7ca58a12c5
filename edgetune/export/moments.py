"""What a decoder's layers are given on the user's training rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.export.weights import CheckpointTensors, device_model
from edgetune.model.weights import find_tensors
from edgetune.quantize.gptq import input_moments
from edgetune.recipe import Recipe

BATCH_ROWS = 8
"""Rows run at a time for calibration."""


@dataclass(frozen=True)
class Rows:
    """The user's rows as training saw them."""

    prepared: Prepared
    pad_id: int


def layer_moments(merged: Path, names: Iterable[str], recipe: Recipe, rows: Rows) -> Iterator[tuple[str, Tensor]]:
    """For each of the matrices (tensors of the merged folder) its name and the moments (K, K) of its inputs.

    The model runs over [export] calibration_rows of the train rows; memory holds one layer of it and some moments.
    """
    model = device_model(merged, CheckpointTensors(find_tensors(merged)))
    linears = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}

    def run() -> Iterator[Tensor]:
        for ids, mask in _batches(rows.prepared.train, recipe.export.calibration_rows, seed=recipe.train.seed):
            yield mask
            with torch.no_grad():
                model.model(input_ids=ids, use_cache=False)

    return input_moments(linears, run)


def _batches(tokens: Tokens, count: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 and mask bool, (B, T) each, of so many rows drawn from all, filled up on the right."""
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:count]
    in_order = sorted(drawn.tolist(), key=lambda index: int(tokens.lengths[index]))
    for start in range(0, len(in_order), BATCH_ROWS):
        found = [torch.tensor(tokens[index].input_ids) for index in in_order[start : start + BATCH_ROWS]]
        mask = pad_sequence([torch.ones_like(ids) for ids in found], batch_first=True).bool()
        yield pad_sequence(found, batch_first=True), mask
