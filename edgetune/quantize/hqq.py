"""Scales of least error in a norm that minds a few large errors less than squares do: half-quadratic quantisation.

In the flow: as scales.py, which has the other ways to choose scales without looking at inputs.
Source: Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models, mobiusml.github.io/hqq_blog.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.quantize.scales import by_extremes, round_to_grid, storable
from edgetune.runtime.grid import Grid

NORM, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20
"""Its authors' p, beta, kappa and number of steps; errors are counted in scales."""


def by_half_quadratic(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Least sum of |error| ** NORM in each block (..., block_size), never more than by its extremes.

    Each step splits the errors into outliers, by shrinkage, and the rest, and fits the rest in closed form. The paper
    fits a zero point with a fraction; ours is whole, so the scale is fitted too.
    """
    scales, zeros = by_extremes(blocks, grid)
    best_scales, best_zeros, beta = scales, zeros, BETA
    least = torch.full_like(scales, torch.inf)
    for _ in range(STEPS):
        codes = round_to_grid(blocks, scales, zeros, grid.bits)
        steps = blocks / scales.unsqueeze(-1)
        errors = steps - (codes - zeros.unsqueeze(-1))
        size = errors.abs()
        found = size.pow(NORM).sum(-1) * scales.abs() ** NORM
        is_better = found < least
        least = torch.where(is_better, found, least)
        best_scales = torch.where(is_better, scales, best_scales)
        best_zeros = torch.where(is_better, zeros, best_zeros)
        outliers = (size - size.clamp_min(1e-8).pow(NORM - 1) / beta).clamp_min_(0).copysign_(errors)
        fitted = steps - outliers
        if not grid.symmetric:
            zeros = (codes - fitted).mean(-1).round_().clamp_(0, 2**grid.bits - 1)
        levels = codes - zeros.unsqueeze(-1)
        square = torch.linalg.vecdot(levels, levels)
        ratio = torch.linalg.vecdot(fitted, levels) / square.clamp_min(1)
        scales = storable(torch.where((square > 0) & (ratio > 0), scales * ratio, scales))
        beta *= GROWTH
    return best_scales, best_zeros
