"""Survival: how much of what fine-tuning gained is left in the bundle, over the model and layer by layer.

Pure numbers in, numbers out: scores of the same rows from base, fine-tune and bundle; weights of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetune.quant.grid import QuantizedMatrix, dequantize, quantize, unpack

LEAST_GAIN = 1e-9
"""Less than that between base and fine-tune is no gain of which a share could be kept."""


@dataclass(frozen=True)
class Gain:
    """Gain kept: (bundle - base) / (fine-tune - base), of a mean over rows; 1.0 when nothing was lost."""

    kept: float | None
    """None where the fine-tune is no better than the base: there is nothing to keep."""
    interval: tuple[float, float] | None
    base: float
    tuned: float
    shipped: float
    rows: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return asdict(self)


def gain_kept(
    base: Sequence[float] | float,
    tuned: Sequence[float],
    shipped: Sequence[float],
    *,
    counts: Sequence[float] | None = None,
    is_loss: bool = False,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gain:
    """The gain kept over the same rows, with a paired bootstrap interval: rows are drawn once for all three.

    base, tuned, shipped (rows,): each row's score, or its summed nats with `counts` its trained tokens. A number for
    `base` is its mean, known without rows. Resamples in which the fine-tune gained nothing are left out. Raises
    ValueError for sequences of different lengths.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    sign = -1.0 if is_loss else 1.0
    weights = np.ones(len(tuned)) if counts is None else np.asarray(counts, np.float64)
    first = np.full(len(tuned), base) * weights if isinstance(base, float | int) else np.asarray(base, np.float64)
    sums = np.stack([first, np.asarray(tuned, np.float64), np.asarray(shipped, np.float64)])
    if sums.shape[1] != len(weights) or not len(weights):
        raise ValueError(f"{sums.shape[1]} rows and {len(weights)} counts: need as many of both, and at least one")
    means = sums.sum(1) / weights.sum()
    drawn = np.random.default_rng(seed).multinomial(len(weights), np.full(len(weights), 1 / len(weights)), samples)
    resampled = (drawn @ sums.T) / np.maximum(drawn @ weights, 1e-12)[:, None] * sign
    gained = resampled[:, 1] - resampled[:, 0]
    ratios = (resampled[:, 2] - resampled[:, 0])[gained > LEAST_GAIN] / gained[gained > LEAST_GAIN]
    gain, left = sign * (means[1] - means[0]), sign * (means[2] - means[0])
    has_gained = gain > LEAST_GAIN and len(ratios) > samples / 2
    tail = (1 - confidence) / 2
    return Gain(
        kept=float(left / gain) if has_gained else None,
        interval=tuple(float(x) for x in np.quantile(ratios, [tail, 1 - tail])) if has_gained else None,  # type: ignore[arg-type]
        base=float(means[0]),
        tuned=float(means[1]),
        shipped=float(means[2]),
        rows=len(weights),
        confidence=confidence,
    )


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
    settings = {"bits": shipped.bits, "block_size": shipped.block_size, "symmetric": shipped.zero_points is None}
    before, after = (_codes(quantize(weight, **settings)) for weight in (base, merged))  # type: ignore[arg-type]
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
    return unpack(matrix.packed, matrix.bits, matrix.block_size)
