"""Every way to round a weight to the grid, by the name that [export] method has for it."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import Tensor

from edgetune.quantize.gptq import quantize_calibrated
from edgetune.quantize.grid import QuantizedMatrix, quantize
from edgetune.quantize.scales import Chooser
from edgetune.recipe import CALIBRATED, Method


class Rounder(Protocol):
    """A weight (N, K), and the error spread (K, K) of its inputs where it is known, to the grid."""

    def __call__(
        self, weight: Tensor, spread: Tensor | None, *, bits: int, block_size: int, symmetric: bool
    ) -> QuantizedMatrix: ...


def round_weight(
    weight: Tensor, method: Method, spread: Tensor | None = None, *, bits: int, block_size: int, symmetric: bool
) -> QuantizedMatrix:
    """The weight (N, K) on the grid by a method; without `spread`, those that need it search instead.

    spread (K, K): `gptq.error_spread` of the moments of the layer's inputs. Raises ModelError for a weight with
    NaN or infinity.
    """
    return ROUNDERS[method](weight, spread, bits=bits, block_size=block_size, symmetric=symmetric)


def without_rows(method: Method) -> Method:
    """The method, or for one that needs training rows what rounds each weight by itself."""
    return "search" if method in CALIBRATED else method


def _alone(
    weight: Tensor, _: Tensor | None, *, bits: int, block_size: int, symmetric: bool, chooser: Chooser
) -> QuantizedMatrix:
    """Each weight to the nearest number of the grid, scales chosen by `chooser`."""
    return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric, method=chooser)


def _for_inputs(
    weight: Tensor, spread: Tensor | None, *, bits: int, block_size: int, symmetric: bool
) -> QuantizedMatrix:
    """GPTQ."""
    if spread is None:
        return quantize(weight, bits=bits, block_size=block_size, symmetric=symmetric)
    return quantize_calibrated(weight, spread, bits=bits, block_size=block_size, symmetric=symmetric)


ROUNDERS: dict[Method, Rounder] = {
    "rtn": partial(_alone, chooser="rtn"),
    "search": partial(_alone, chooser="search"),
    "hqq": partial(_alone, chooser="hqq"),
    "gptq": _for_inputs,
    "awq": _for_inputs,  # on weights that awq.py has scaled before
}
