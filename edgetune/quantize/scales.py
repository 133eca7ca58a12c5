"""How scale and zero point of a block are chosen without looking at inputs: by its extremes, or by a search.

grid.py encodes with them. Every choice is one that the grid holds: bfloat16-valued scales, whole zero points.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgetune.runtime.grid import Grid

Choose = Callable[[Tensor, Grid], tuple[Tensor, Tensor]]
"""float32 blocks (..., block_size) -> scales and zero points (...,), float32; scales as the grid holds them."""

LEAST_SCALE = 2.0**-14
"""Scales are no smaller than the smallest normal float16, so that fp16 kernels hold them too."""

_SHRINKS = {
    2: tuple(1.0 - 0.05 * step for step in range(13)),
    4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72),
    8: (1.0, 0.99, 0.98, 0.96),
}
"""Shares of the full range that are tried; eight bits have little to win, two bits clip much."""


def storable(scales: Tensor) -> Tensor:
    """float32 scales -> the nearest that the grid holds: bfloat16 values, magnitude at least LEAST_SCALE, sign kept."""
    scales = scales.to(torch.bfloat16).float()
    return torch.where(scales.abs() < LEAST_SCALE, torch.full_like(scales, LEAST_SCALE).copysign(scales), scales)


def round_to_grid(blocks: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """blocks (..., block_size), scales and zero points (...,) -> codes (..., block_size), float32 integers.

    Half goes to even, as everywhere in float32.
    """
    codes = blocks / scales.unsqueeze(-1)
    return codes.round_().add_(zero_points.unsqueeze(-1)).clamp_(0, 2**bits - 1)


def by_extremes(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The whole range; symmetric, the largest magnitude is code 0 (a signed scale uses all levels, as MLAS does)."""
    scales, zeros = _full_range(blocks, grid)
    return storable(scales), zeros


def by_search(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Least squared error: from the extremes the range shrinks step by step, and each scale is refit by least squares.

    The idea of llama.cpp's make_qkx2_quants.
    """
    top = 2**grid.bits - 1
    start, zeros = _full_range(blocks, grid)
    low = blocks.amin(-1).clamp_(max=0)
    best = _Best(blocks, storable(start), zeros, grid.bits)
    for shrink in _SHRINKS[grid.bits]:
        candidate = storable(start * shrink)
        shifted = zeros if grid.symmetric else (-low * shrink / candidate).round_().clamp_(0, top)
        best.offer(best.offer(candidate, shifted), shifted)
    for shift in () if grid.symmetric else (1, -1, 1, -1):
        shifted = (best.zeros + shift).clamp_(0, top)
        best.offer(best.offer(best.scales, shifted), shifted)
    best.offer(best.offer(best.scales, best.zeros), best.zeros)
    return best.scales, best.zeros


def _full_range(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales, not storable yet, and zero points that span a block from its least to its greatest weight, and zero."""
    top, middle = 2**grid.bits - 1, 2 ** (grid.bits - 1)
    if grid.symmetric:
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return extreme / -middle, torch.full_like(extreme, middle)
    low, high = blocks.amin(-1).clamp_(max=0), blocks.amax(-1).clamp_(min=0)
    scales = (high - low) / top
    return scales, (-low / storable(scales)).round_().clamp_(0, top)


class _Best:
    """The scales and zero points that rounded the blocks with the least squared error so far."""

    def __init__(self, blocks: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> None:
        self.blocks, self.bits = blocks, bits
        self.norms = torch.linalg.vecdot(blocks, blocks)
        self.errors = torch.full_like(scales, torch.inf)
        self.scales, self.zeros = scales, zeros
        self.offer(scales, zeros)

    def offer(self, scales: Tensor, zeros: Tensor) -> Tensor:
        """Keep the candidates (...,) where they are better; the storable scales that fit their codes best.

        With codes c around the zero point, the error is <w, w> - 2 s <w, c> + s^2 <c, c>, least at s = <w, c> / <c, c>.
        """
        levels = (self.blocks * (1 / scales).unsqueeze(-1)).round_()
        levels = torch.minimum(torch.maximum(levels, -zeros.unsqueeze(-1)), (2**self.bits - 1 - zeros).unsqueeze(-1))
        cross, square = torch.linalg.vecdot(self.blocks, levels), torch.linalg.vecdot(levels, levels)
        errors = self.norms + scales * (scales * square - 2 * cross)
        better = errors < self.errors
        self.errors = torch.where(better, errors, self.errors)
        self.scales = torch.where(better, scales, self.scales)
        self.zeros = torch.where(better, zeros, self.zeros)
        return storable(torch.where(square > 0, cross / square.clamp(min=1), scales))
