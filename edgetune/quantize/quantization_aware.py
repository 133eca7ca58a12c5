"""Training on the grid: a low-rank change to a weight is learned through the rounding that it will be shipped with.

Each forward pass rounds the changed weight by quantize.grid and multiplies with the grid's numbers; gradients pass
through the rounding as if it were not there. Source: LR-QAT, arXiv:2406.06385, section 3; straight-through,
arXiv:1308.3432.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetune.quantize.grid import QuantizedMatrix, dequantize, quantize
from edgetune.quantize.repairable import rounded_inputs
from edgetune.quantize.scales import by_extremes
from edgetune.runtime.grid import Grid

RANK = 16


class OnGridLinear(nn.Module):
    """x (..., K) -> (..., N) with the weight W + B A on the grid; A and B are trained, B starts at zero."""

    def __init__(self, linear: nn.Linear, grid: Grid, *, rounds_inputs: bool) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        rank = min(RANK, rows, columns)
        self.register_buffer("weight", linear.weight.detach().float())
        self.bias = linear.bias
        self.a = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.grid, self.rounds_inputs = grid, rounds_inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds_inputs:
            x = rounded_inputs(x, self.grid.block_size)
        weight = self._changed()
        rounded = dequantize(self._on_grid(weight)).to(weight.device)
        return F.linear(x, weight + (rounded - weight).detach(), self.bias)

    def matrix(self) -> QuantizedMatrix:
        """The weight as it is shipped: the numbers of the last forward pass."""
        return self._on_grid(self._changed())

    def _changed(self) -> Tensor:
        return torch.addmm(self.weight, self.b, self.a)

    def _on_grid(self, weight: Tensor) -> QuantizedMatrix:
        return quantize(weight.detach().cpu(), self.grid, by_extremes)


def put_linears_on_grid(model: nn.Module, bits: Mapping[str, int], grid: Grid, *, rounds_inputs: bool) -> None:
    """Replace, in place, the nn.Linear layers whose weights `bits` puts at 4 bits; nothing else is trained."""
    model.requires_grad_(False)
    for name in [name for name, count in bits.items() if count == 4]:
        path = name.removesuffix(".weight")
        linear = cast(nn.Linear, model.get_submodule(path))
        model.set_submodule(path, OnGridLinear(linear, grid.with_bits(4), rounds_inputs=rounds_inputs))


def on_grid_matrices(model: nn.Module) -> dict[str, QuantizedMatrix]:
    """The trained weights on the grid, by the names of their tensors."""
    return {f"{name}.weight": part.matrix() for name, part in model.named_modules() if isinstance(part, OnGridLinear)}
