"""The layer that is trained through its rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgetune.quantize.grid import dequantize, quantize
from edgetune.quantize.quantization_aware import OnGridLinear
from edgetune.quantize.repairable import round_inputs
from edgetune.quantize.scales import by_extremes
from edgetune.runtime.grid import Grid


def test_a_layer_multiplies_with_its_rounded_weight_and_trains_through_it() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 8)
    layer = OnGridLinear(linear, Grid(4, 32, symmetric=False), rounds_inputs=False)
    x = torch.randn(4, 64)
    rounded = dequantize(quantize(linear.weight, layer.grid, by_extremes))
    torch.testing.assert_close(layer(x), F.linear(x, rounded, linear.bias))
    layer(x).square().sum().backward()
    assert layer.b.grad is not None
    assert layer.b.grad.abs().max() > 0
    assert not layer.weight.requires_grad


def test_a_layer_that_rounds_inputs_multiplies_with_the_rounded_ones() -> None:
    torch.manual_seed(0)
    layer = OnGridLinear(torch.nn.Linear(64, 8), Grid(4, 32, symmetric=False), rounds_inputs=True)
    x = torch.randn(4, 64)
    torch.testing.assert_close(layer(x), F.linear(round_inputs(x, 32), dequantize(layer.matrix()), layer.bias))
    assert (layer(x) - F.linear(x, dequantize(layer.matrix()), layer.bias)).abs().max() > 1e-3


def test_the_matrix_is_that_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer = OnGridLinear(torch.nn.Linear(72, 8), Grid(4, 32, symmetric=True), rounds_inputs=False)
    torch.nn.init.normal_(layer.b, std=0.1)
    x = torch.randn(4, 72)
    torch.testing.assert_close(layer(x), F.linear(x, dequantize(layer.matrix()), layer.bias))
