"""Rounding that minds what a layer is given: the grid's codes are chosen so that its outputs change least (GPTQ).

In the flow: a model and some of its inputs -> input_moments of its linear layers -> quantize_calibrated for each.
The grid, its scales and its bytes are those of grid.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.quant.grid import (
    QuantizedMatrix,
    from_codes,
    one_thread,
    quantize,
    refuse_infinite,
)
from edgetune.quant.scales import choose, round_to_grid

DAMPING = 0.01
"""Of the mean squared input that is added to each: GPTQ's own choice (section 3.3, step 3)."""
MOMENT_BYTES = 1 << 29
"""Moments held at once; a model with more is run several times."""


def quantize_calibrated(
    weight: Tensor, moments: Tensor, *, bits: int, block_size: int, symmetric: bool = False
) -> QuantizedMatrix:
    """The weight (N, K) on the grid, with the squared error of W x over the inputs seen made small, not that of W.

    moments (K, K): the sum of x x^T over inputs x. Columns are rounded from left to right; what rounding one of them
    adds to the outputs is taken up by those still to come, as far as inputs are correlated. Inputs that are not
    correlated at all give the bytes of quantize(). Raises ModelError for NaN or infinity.
    Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 3.3 and algorithm 1; scales as in grid.choose.
    """
    if not torch.isfinite(moments).all() or not moments.diagonal().any():
        return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric)
    refuse_infinite(weight)
    columns = weight.shape[1]
    with one_thread():
        rest = torch.nn.functional.pad(weight.detach().float(), (0, -columns % block_size))
        spread = _spread(moments, rest.shape[1])
        parts = []
        for start in range(0, rest.shape[1], block_size):
            stop = start + block_size
            block = rest[:, start:stop].clone()
            scales, zeros = choose(block, bits=bits, symmetric=symmetric, method="search")
            codes, errors = _round_block(block, scales, zeros, spread[start:stop, start:stop], bits)
            rest[:, stop:] -= errors @ spread[start:stop, stop:]
            parts.append((codes, scales, zeros))
        codes, scales, zeros = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return from_codes(codes, scales, zeros, bits=bits, symmetric=symmetric, in_features=columns)


def input_moments(
    modules: Mapping[str, nn.Module], run: Callable[[], Iterator[Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Name and moments (K, K) float32 of each linear layer's inputs while `run` runs the model.

    `run` runs the model batch by batch and, before each, yields which of the inputs count: bool (B, T), the rows of a
    layer's input (B, T, K). It is called once for each part of the modules whose moments fit MOMENT_BYTES.
    """
    for part in _parts(modules):
        moments: dict[str, Tensor] = {}
        counted: list[Tensor] = []
        with ExitStack() as hooks:
            for name, module in part.items():
                hook = module.register_forward_pre_hook(partial(_add, name, moments, counted))
                hooks.callback(hook.remove)
            for mask in run():
                counted[:] = [mask]
        yield from moments.items()


def _add(name: str, moments: dict[str, Tensor], counted: list[Tensor], _: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A forward hook: add the inputs that count to the moments of a layer."""
    states = inputs[0].detach()
    if states.shape[:-1] == counted[0].shape:  # a layer may see other things than tokens, such as positions
        states = states[counted[0]]
    states = states.reshape(-1, states.shape[-1]).float()
    found = states.T @ states
    moments[name] = moments[name] + found if name in moments else found


def _parts(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """The modules in their order, in parts whose moments are at most MOMENT_BYTES."""
    part: dict[str, nn.Module] = {}
    size = 0
    for name, module in modules.items():
        needed = 4 * int(module.weight.shape[1]) ** 2
        if part and size + needed > MOMENT_BYTES:
            yield part
            part, size = {}, 0
        part[name] = module
        size += needed
    if part:
        yield part


def _spread(moments: Tensor, columns: int) -> Tensor:
    """How an error in a column is made up for by later ones: the upper Cholesky factor of the moments' inverse.

    (K, K) -> (columns, columns) float32, rows divided by their diagonals; padding and unseen inputs stand alone.
    """
    wide = torch.zeros(columns, columns, dtype=torch.float64)
    wide[: len(moments), : len(moments)] = moments.double()
    diagonal = wide.diagonal()
    seen = diagonal > 0
    diagonal += DAMPING * diagonal[seen].mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide))
    factor = torch.linalg.cholesky(inverse, upper=True)
    return (factor / factor.diagonal().unsqueeze(1)).float()


def _round_block(block: Tensor, scales: Tensor, zeros: Tensor, spread: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (N, block_size) of a block of columns, rounded one after the other, and the error of each."""
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    for column in range(block.shape[1]):
        values = block[:, column : column + 1]
        code = round_to_grid(values, scales, zeros, bits)
        error = values - (code - zeros.unsqueeze(1)) * scales.unsqueeze(1)
        codes[:, column : column + 1], errors[:, column : column + 1] = code, error
        block[:, column + 1 :] -= error * spread[column, column + 1 :]
    return codes, errors
