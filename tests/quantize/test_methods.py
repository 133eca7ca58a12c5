"""quantize/methods.py and quantize/awq.py: ways to round by name, and scales of channels."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from edgetune.errors import RecipeError
from edgetune.quantize.awq import channel_scales, for_columns
from edgetune.quantize.gptq import inverse_factor
from edgetune.quantize.grid import dequantize, quantize
from edgetune.quantize.methods import ROUNDERS, method_of, round_weight
from edgetune.recipe import CALIBRATED, ExportTable, Method
from edgetune.runtime.grid import Grid

GRID = Grid(4, 32, False)


def uneven(rows: int, columns: int, *, seed: int) -> Tensor:
    """Inputs of which a few channels are far stronger than the others, correlated."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed * (torch.rand(columns, generator=generator) ** 4 * 4 + 0.05)


def output_error(inputs: Tensor, weight: Tensor, rounded: Tensor) -> float:
    return float(((inputs @ (rounded - weight).T) ** 2).mean())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_methods_that_know_the_inputs_change_outputs_less_than_those_that_do_not(bits: int, symmetric: bool) -> None:
    weight = torch.randn(96, 172, generator=torch.Generator().manual_seed(1))
    inputs, unseen = uneven(3000, 172, seed=2).split(2000)
    grid, factor = Grid(bits, 32, symmetric), inverse_factor(inputs.T @ inputs)
    errors = {
        method: output_error(unseen, weight, dequantize(round_weight(weight, grid, method, factor)))
        for method in ROUNDERS
    }
    least = 1.0 if bits == 2 else 0.9
    assert max(errors["gptq"], errors["awq"]) < least * min(errors["rtn"], errors["search"], errors["hqq"])


def test_every_method_of_a_recipe_has_its_function() -> None:
    assert set(ROUNDERS) == set(get_args(Method))


@pytest.mark.parametrize(
    ("table", "method"),
    [
        (ExportTable(), "gptq"),
        (ExportTable(precision="int2"), "gptq"),
        (ExportTable(precision="int8"), "search"),
        (ExportTable(precision="int8", method="gptq"), "gptq"),
        (ExportTable(calibration_rows=0), "search"),
        (ExportTable(method="hqq"), "hqq"),
        (ExportTable(precision="fp16", method="gptq"), "gptq"),
    ],
)
def test_rounding_for_the_rows_is_the_default_where_it_pays(table: ExportTable, method: Method) -> None:
    assert method_of(table) == method


def test_without_rows_auto_searches_and_a_method_that_needs_them_is_refused() -> None:
    assert method_of(ExportTable(), has_rows=False) == "search"
    assert method_of(ExportTable(method="rtn"), has_rows=False) == "rtn"
    with pytest.raises(RecipeError, match=r'export\.method = "gptq": needs training rows'):
        method_of(ExportTable(method="gptq"), has_rows=False)


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_method_that_needs_inputs_searches_without_them(method: Method) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(round_weight(weight, GRID, method).packed, quantize(weight, GRID).packed)


@pytest.mark.parametrize("heads", [(1, 128), (2, 16), (4, 8)])
def test_scaled_channels_change_outputs_less_on_rows_that_were_not_seen(heads: tuple[int, int]) -> None:
    weights = [torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows)) for rows in (48, 24)]
    inputs, unseen = uneven(3000, 128, seed=4).split(2000)
    scales = channel_scales(weights, GRID, inputs.T @ inputs, heads)
    columns = for_columns(scales, heads)
    assert (scales.shape, columns.shape) == ((128 // heads[0],), (128,))
    for weight in weights:
        scaled = dequantize(quantize(weight * columns, GRID)) / columns
        plain = dequantize(quantize(weight, GRID))
        ratio = output_error(unseen, weight, scaled) / output_error(unseen, weight, plain)
        assert ratio < (0.9 if heads[0] == 1 else 1.05)  # heads that share scales can win little here


def test_heads_that_read_one_head_share_its_scales() -> None:
    assert for_columns(torch.arange(4.0), (2, 2)).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("hessian", [torch.eye(64), torch.zeros(64, 64)])
def test_channels_of_one_strength_are_left_alone(hessian: Tensor) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(5))
    assert torch.equal(channel_scales([weight], GRID, hessian, (1, 64)), torch.ones(64))
