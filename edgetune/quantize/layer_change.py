"""What of a fine-tune's change to a matrix is left in the numbers of the grid. Numbers in, numbers out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.quantize.grid import QuantizedMatrix, dequantize, quantize, unpack


@dataclass(frozen=True)
class LayerChange:
    """One matrix: what the adapter was to change, and what of it is in the bundle's numbers."""

    name: str
    codes_changed: float
    """Share of the integers that the adapter changes: base and merged weight rounded alike, to the nearest."""
    correlation: float
    """Of the intended change and the realised one, over all weights; 0 where the adapter is lost in rounding."""
    norm_ratio: float
    """Norm of the realised change, rounding included, to that of the intended one; 1 when nothing is added."""


def layer_change(name: str, base: Tensor, merged: Tensor, shipped: QuantizedMatrix) -> LayerChange:
    """What became of an adapter's change to one matrix. base and merged (N, K), as training and merge held them."""
    before, after = (_codes(quantize(weight, shipped.grid)) for weight in (base, merged))
    intended = (merged.float() - base.float()).flatten()
    realised = (dequantize(shipped) - base.float()).flatten()
    norms = float(intended.norm()), float(realised.norm())
    product = norms[0] * norms[1]
    return LayerChange(
        name=name,
        codes_changed=float((before != after).float().mean()),
        correlation=float(torch.dot(intended, realised)) / product if product else math.nan,
        norm_ratio=norms[1] / norms[0] if norms[0] else math.nan,
    )


def _codes(matrix: QuantizedMatrix) -> Tensor:
    """(N, K), without those of the padding."""
    return unpack(matrix.packed, matrix.bits, matrix.block_size).flatten(1)[:, : matrix.in_features]
