"""Every way to round a weight to the grid, by the name that [export] method has for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from edgetune.errors import RecipeError
from edgetune.quantize.gptq import quantize_calibrated
from edgetune.quantize.grid import QuantizedMatrix, quantize
from edgetune.quantize.hqq import by_half_quadratic
from edgetune.quantize.precisions import PRECISIONS
from edgetune.quantize.scales import Choose, by_extremes, by_search
from edgetune.recipe import CALIBRATED, ExportTable, Method
from edgetune.runtime.grid import Grid


class Rounder(Protocol):
    """A weight (N, K), and where they are known the inputs that it gets, as `gptq.inverse_factor` (K, K), to a grid."""

    def __call__(self, weight: Tensor, grid: Grid, factor: Tensor | None, /) -> QuantizedMatrix: ...


def method_of(table: ExportTable, *, has_rows: bool = True) -> Method:
    """The method of an [export] table with "auto" decided: without rows, or with 8 bits, it searches.

    Raises RecipeError for a method that needs rows where there are none.
    """
    if table.method == "auto":
        is_calibrated = PRECISIONS[table.precision].has_few_bits and table.calibration_rows and has_rows
        return "gptq" if is_calibrated else "search"
    if table.method in CALIBRATED and not has_rows:
        raise RecipeError(f'export.method = "{table.method}": needs training rows', cure='give rows, or take "search"')
    return table.method


def without_rows(method: Method) -> Method:
    """The method, or for one that needs training rows what rounds each weight by itself."""
    return "search" if method in CALIBRATED else method


def round_weight(weight: Tensor, grid: Grid, method: Method, factor: Tensor | None = None) -> QuantizedMatrix:
    """The weight (N, K) on the grid by a method; without `factor`, those that need it search instead.

    factor (K, K): `gptq.inverse_factor` of the layer's inputs. Raises ModelError for a weight with NaN or infinity.
    """
    return ROUNDERS[method](weight, grid, factor)


def _to_nearest(choose: Choose) -> Rounder:
    """Each weight to the nearest number of the grid, scales and zero points by `choose`."""
    return lambda weight, grid, _: quantize(weight, grid, choose)


def _for_inputs(weight: Tensor, grid: Grid, factor: Tensor | None) -> QuantizedMatrix:
    """GPTQ."""
    return quantize(weight, grid) if factor is None else quantize_calibrated(weight, grid, factor)


ROUNDERS: dict[Method, Rounder] = {
    "rtn": _to_nearest(by_extremes),
    "search": _to_nearest(by_search),
    "hqq": _to_nearest(by_half_quadratic),
    "gptq": _for_inputs,
    "awq": _for_inputs,  # on weights that awq.py has scaled before
}
