"""quantize/gptq.py: rounding to a layer's inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from edgetune.quantize import gptq
from edgetune.quantize.gptq import inverse_factor, quantize_calibrated
from edgetune.quantize.grid import dequantize, quantize
from edgetune.runtime.grid import Grid

GRIDS = [
    Grid(4, 32, False),
    Grid(4, 32, True),
    Grid(4, 16, False),
    Grid(8, 128, False),
    Grid(2, 32, False),
    Grid(2, 64, True),
]


def correlated(rows: int, columns: int, *, seed: int) -> Tensor:
    """Inputs whose columns depend on each other, some far stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed * torch.rand(columns, generator=generator) ** 2


def factor_of(inputs: Tensor) -> Tensor:
    factor = inverse_factor(inputs.T @ inputs)
    assert factor is not None
    return factor


def output_error(inputs: Tensor, weight: Tensor, matrix) -> float:
    return float(((inputs @ (dequantize(matrix) - weight).T) ** 2).mean())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns", [64, 172])
def test_outputs_change_far_less_than_by_rounding_to_the_nearest(grid: Grid, columns: int) -> None:
    weight = torch.randn(96, columns, generator=torch.Generator().manual_seed(1))
    inputs, unseen = correlated(3000, columns, seed=2).split(2000)
    found = quantize_calibrated(weight, grid, factor_of(inputs))
    least = 0.85 if grid.bits == 2 else 0.75  # with four levels the errors are too large to be taken up as well
    assert output_error(unseen, weight, found) < least * output_error(unseen, weight, quantize(weight, grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_inputs_that_are_not_correlated_give_the_bytes_of_plain_rounding(grid: Grid) -> None:
    weight = torch.randn(40, 172, generator=torch.Generator().manual_seed(3))
    wanted = quantize(weight, grid)
    found = quantize_calibrated(weight, grid, inverse_factor(7 * torch.eye(172)))
    assert torch.equal(found.packed, wanted.packed)
    assert torch.equal(found.scales, wanted.scales)
    assert grid.symmetric or torch.equal(found.zero_points, wanted.zero_points)
    assert (found.bits, found.block_size, found.in_features) == (grid.bits, grid.block_size, 172)
    assert found.grid == grid


def test_padding_holds_zeros_and_inputs_that_were_never_seen_do_no_harm() -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(4))
    inputs = correlated(500, 40, seed=5)
    inputs[:, 7] = 0
    found = quantize_calibrated(weight, Grid(4, 32, False), factor_of(inputs))
    assert torch.isfinite(dequantize(found)).all()
    whole = dequantize(calibrate_whole(found))
    assert torch.equal(whole[:, 40:], torch.zeros(24, 24))
    assert (dequantize(found)[:, 7] - weight[:, 7]).abs().max() < 1.0


def calibrate_whole(matrix):
    """The matrix with its padding."""
    import dataclasses

    return dataclasses.replace(matrix, in_features=matrix.packed.shape[1] * matrix.block_size)


@pytest.mark.parametrize("columns", [40, 256, 300])
def test_the_factor_is_the_upper_one_of_the_inverse_by_its_diagonal(columns: int) -> None:
    """By the definition, in float64, for one strip, a whole one, and more."""
    inputs = correlated(2 * columns, columns, seed=8)
    hessian = (inputs.T @ inputs).double()
    damped = hessian + gptq.DAMPING * hessian.diagonal().mean() * torch.eye(columns)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    wanted = (factor / factor.diagonal().unsqueeze(1)).float()
    torch.testing.assert_close(factor_of(inputs), wanted, atol=1e-3 * float(wanted.abs().max()), rtol=0)


def test_few_inputs_and_one_that_outweighs_all_are_factored_too() -> None:
    """As language models have them: 60 rows for 300 columns, one of which is a thousand times the others."""
    inputs = torch.randn(60, 300, generator=torch.Generator().manual_seed(9))
    inputs[:, 5] *= 1000
    assert torch.isfinite(factor_of(inputs)).all()


@pytest.mark.parametrize("hessian", [torch.zeros(64, 64), torch.full((64, 64), torch.nan), 10 * torch.eye(64) - 9])
def test_a_hessian_that_says_nothing_has_no_factor(hessian: Tensor) -> None:
    assert inverse_factor(hessian.clone()) is None


def test_memory_holds_one_matrix_of_the_size_of_the_hessian() -> None:
    columns = 2048
    inverse_factor(torch.eye(512))  # what the libraries take once
    hessian = torch.eye(columns).add_(0.1)
    reset_peak_resident()
    before = resident_bytes()
    assert inverse_factor(hessian) is hessian
    assert peak_resident_bytes() - before < hessian.nbytes / 2


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_calibrated(torch.full((4, 32), torch.inf), Grid(4, 32, False), torch.eye(32))
