"""Rounding that minds what a layer is given: the grid's codes are chosen so that its outputs change least (GPTQ).

In the flow: the Hessian of a layer's inputs, from hessian.py -> inverse_factor of it -> quantize_calibrated for each
weight that has these inputs. The grid, its scales and its bytes are those of grid.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgetune.quantize.grid import QuantizedMatrix, from_codes, one_thread, refuse_infinite
from edgetune.quantize.scales import by_search, round_to_grid
from edgetune.runtime.grid import Grid

DAMPING = 0.01
"""Of the mean squared input that is added to each: GPTQ's own choice (section 3.3, step 3)."""
_STRIP = 256
"""Columns factored at a time: products of such strips are as fast as any, and hardly take memory."""


def quantize_calibrated(weight: Tensor, grid: Grid, factor: Tensor) -> QuantizedMatrix:
    """The weight (N, K) on the grid, with the squared error of W x over the inputs seen made small, not that of W.

    factor (K, K): `inverse_factor` of the inputs' Hessian. Columns are rounded from left to right; what rounding one of
    them adds to the outputs is taken up by those still to come, as far as inputs are correlated. Inputs that are not
    correlated at all give the bytes of quantize(). Beside the two, memory holds one float32 copy of the weight and the
    result. Raises ModelError for NaN or infinity.
    Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 3.3 and algorithm 1; scales as in scales.by_search.
    """
    refuse_infinite(weight)
    columns, size = weight.shape[1], grid.block_size
    rest = weight.detach().to(torch.float32, copy=True)
    parts = []
    with one_thread():
        for start in range(0, columns, size):
            stop = min(start + size, columns)
            block = torch.nn.functional.pad(rest[:, start:stop], (0, start + size - stop))
            scales, zeros = by_search(block, grid)
            codes, errors = _round_block(block, scales, zeros, factor[start:stop, start:stop], grid.bits)
            rest[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
            parts.append((codes, scales, zeros))
        del rest
        codes, scales, zeros = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return from_codes(codes, scales, zeros, grid, in_features=columns)


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the Hessian's inverse: how later columns make up for an error in an earlier one.

    hessian (K, K) float32: the sum of x x^T over inputs x -> (K, K), rows divided by their diagonals; inputs never
    seen stand alone. It is made in the memory of the Hessian, which is used up: there is nothing else of its size. None
    where the Hessian says nothing: no input was seen, or it is not finite, or not one of any inputs.
    Source: GPTQ, section 3.3, step 3; U^T U = H^-1 for U = R^-1, H = R R^T, which needs no inverse of H.
    """
    seen = hessian.diagonal() > 0
    if not seen.any() or not math.isfinite(float(hessian.sum())):
        return None
    hessian.diagonal().add_(DAMPING * hessian.diagonal()[seen].double().mean())
    with one_thread():
        if not _factor_upper(hessian):
            return None
        hessian.triu_()
        for start in range(0, len(hessian), _STRIP):
            strip = hessian[:start, start : start + _STRIP]
            corner = hessian[start : start + _STRIP, start : start + _STRIP]
            strip.copy_((hessian[:start, :start] @ strip) @ corner.neg())
        return hessian.div_(hessian.diagonal().clone().unsqueeze(1))


def _factor_upper(matrix: Tensor) -> bool:
    """Factor H = R R^T in place, R upper triangular, strip by strip from the right; whether H is positive definite.

    H (K, K) symmetric. Its upper triangle becomes that of R, but for the corners on the diagonal: those are inverted.
    """
    for start in reversed(range(0, len(matrix), _STRIP)):
        stop = min(start + _STRIP, len(matrix))
        strip = matrix[:stop, start:stop]
        strip.addmm_(matrix[:stop, stop:], matrix[start:stop, stop:].T, alpha=-1)
        corner = strip[start:].double()
        lower, failed = torch.linalg.cholesky_ex((corner.triu() + corner.triu(1).T).flip(0, 1))
        if failed:
            return False
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)).double(), upper=False).flip(0, 1).float()
        strip[:start] = strip[:start] @ inverse.T
        strip[start:] = inverse
    return True


def _round_block(block: Tensor, scales: Tensor, zeros: Tensor, factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 (N, block_size) of a block of columns, rounded one after the other, and the errors (N, columns).

    `factor` (columns, columns): columns after these are padding, whose codes are the zero points.
    """
    codes = zeros.to(torch.uint8).unsqueeze(1).repeat(1, block.shape[1])
    errors = torch.empty_like(block[:, : len(factor)])
    for column in range(len(factor)):
        values = block[:, column : column + 1]
        code = round_to_grid(values, scales, zeros, bits)
        error = values - (code - zeros.unsqueeze(1)) * scales.unsqueeze(1)
        codes[:, column : column + 1], errors[:, column : column + 1] = code, error
        block[:, column + 1 : len(factor)] -= error * factor[column, column + 1 :]
    return codes, errors
