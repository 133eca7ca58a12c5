"""The layer that repair trains: its product, its gradients, what stays as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from edgetune.quantize.grid import QuantizedMatrix, dequantize, quantize
from edgetune.quantize.repairable import (
    RepairableLinear,
    make_repairable,
    repairable_layers,
    repaired,
    round_inputs,
    rounded_inputs,
)
from edgetune.quantize.scales import storable
from edgetune.runtime.grid import Grid


def a_layer(
    *, symmetric: bool = False, rounds_inputs: bool = False, bits: int = 4, columns: int = 72
) -> RepairableLinear:
    torch.manual_seed(0)
    matrix = quantize(torch.randn(6, columns), Grid(bits, 32, symmetric))
    return RepairableLinear(matrix, torch.nn.Parameter(torch.randn(6)), rounds_inputs=rounds_inputs)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_untrained_layer_multiplies_with_the_numbers_of_the_grid(symmetric: bool, bits: int) -> None:
    layer = a_layer(symmetric=symmetric, bits=bits)
    x = torch.randn(2, 5, 72)
    expected = F.linear(x, dequantize(layer.matrix), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.repaired().scales.equal(layer.matrix.scales)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_those_of_the_dequantised_weight(symmetric: bool, bits: int) -> None:
    """72 columns: the last block is padded, its padding must have no part in the scale's gradient."""
    layer = a_layer(symmetric=symmetric, bits=bits)
    x = torch.randn(4, 72, requires_grad=True)
    target = torch.randn(4, 6)
    (layer(x) * target).sum().backward()
    scales = layer.matrix.scales.clone().requires_grad_()
    levels = F.pad(dequantize(layer.matrix), (0, 24)).view(6, 3, 32) / layer.matrix.scales.unsqueeze(-1)
    plain = x.detach().clone().requires_grad_()
    weight = (levels * scales.unsqueeze(-1)).flatten(1)[:, :72]
    (F.linear(plain, weight, layer.bias.detach()) * target).sum().backward()
    assert layer.change.grad is not None
    assert scales.grad is not None
    torch.testing.assert_close(x.grad, plain.grad)
    torch.testing.assert_close(layer.change.grad, scales.grad * layer.matrix.scales, rtol=1e-4, atol=1e-4)


def test_trained_scales_are_storable_and_integers_stay() -> None:
    layer = a_layer()
    with torch.no_grad():
        layer.change.uniform_(-0.1, 0.1)
    found = layer.repaired()
    assert found.packed.equal(layer.matrix.packed)
    assert found.zero_points is not None
    assert found.zero_points.equal(layer.matrix.zero_points)
    assert found.scales.equal(storable(found.scales))
    assert not found.scales.equal(layer.matrix.scales)
    x = torch.randn(3, 72)
    torch.testing.assert_close(layer(x), F.linear(x, dequantize(found), layer.bias))  # what trained is what is shipped


def test_inputs_are_rounded_to_127_steps_a_block() -> None:
    x = torch.randn(3, 40)
    rounded = round_inputs(x, 32)
    steps = rounded[:, :32] / (x[:, :32].abs().amax(-1, keepdim=True) / 127)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert (rounded - x).abs().max() < x.abs().max() / 127
    assert round_inputs(torch.zeros(2, 32), 32).equal(torch.zeros(2, 32))


def test_a_layer_that_rounds_inputs_multiplies_with_the_rounded_ones() -> None:
    layer = a_layer(rounds_inputs=True)
    x = torch.randn(3, 72)
    torch.testing.assert_close(layer(x), F.linear(round_inputs(x, 32), dequantize(layer.matrix), layer.bias))
    assert (layer(x) - F.linear(x, dequantize(layer.matrix), layer.bias)).abs().max() > 1e-3


def test_rounded_inputs_let_gradients_through() -> None:
    layer = a_layer(rounds_inputs=True)
    x = torch.randn(2, 72, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, dequantize(layer.matrix).sum(0).expand(2, -1))


def test_layers_of_one_input_keep_it_once_and_nothing_that_is_rounded() -> None:
    x = torch.randn(256, 72, requires_grad=True)
    kept: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(see, lambda tensor: tensor):
        sum(a_layer(rounds_inputs=True)(x).sum() for _ in range(3)).backward()
    assert [size for size in kept.values() if size >= x.nbytes] == [x.nbytes]


def test_rounding_in_the_layer_gives_the_bytes_of_rounding_before_it() -> None:
    """Values and gradients: what is kept for the way back is another thing, what is computed is the same."""
    found = []
    for is_inside in (True, False):
        layer = a_layer(rounds_inputs=is_inside)
        x = torch.linspace(-3, 3, 7 * 72).view(7, 72).requires_grad_()
        y = layer(x if is_inside else rounded_inputs(x, 32))
        (y * torch.arange(6.0)).square().sum().backward()
        assert x.grad is not None
        assert layer.change.grad is not None
        found.append((y.detach(), x.grad, layer.change.grad))
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


class _Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.linear = torch.nn.Linear(32, 16)
        self.float = torch.nn.Linear(32, 4)
        self.head = torch.nn.Linear(32, 8, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


def matrices_of(model: torch.nn.Module) -> dict[str, QuantizedMatrix]:
    bits = {"embed.weight": 8, "linear.weight": 4, "head.weight": 8}
    return {name: quantize(model.get_parameter(name), Grid(count, 32, False)) for name, count in bits.items()}


def test_only_scales_norms_and_biases_are_trained() -> None:
    model = _Tiny()
    matrices = matrices_of(model)
    make_repairable(model, matrices, rounds_inputs=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"norm.weight", "norm.bias", "linear.bias", "linear.change", "float.bias"}
    assert list(repairable_layers(model)) == ["linear.weight"]
    assert model.head.weight.equal(dequantize(matrices["head.weight"]))
    found, vectors = repaired(model)
    assert set(found) == {"linear.weight"}
    assert set(vectors) == {"norm.weight", "norm.bias", "linear.bias", "float.bias"}


@pytest.mark.parametrize("rounds_inputs", [False, True])
def test_the_head_rounds_its_inputs_where_the_layers_do(rounds_inputs: bool) -> None:
    model = _Tiny()
    matrices = matrices_of(model)
    make_repairable(model, matrices, rounds_inputs=rounds_inputs)
    x = torch.randn(3, 32)
    given = round_inputs(x, 32) if rounds_inputs else x
    torch.testing.assert_close(model.head(x), F.linear(given, dequantize(matrices["head.weight"])))


def test_what_was_taken_out_of_a_model_stays_as_it_was_while_the_model_is_trained_on() -> None:
    model = _Tiny()
    make_repairable(model, matrices_of(model), rounds_inputs=False)
    matrices, vectors = repaired(model)
    before = {name: value.clone() for name, value in vectors.items()}
    scales = matrices["linear.weight"].scales.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    assert all(vectors[name].equal(value) for name, value in before.items())
    assert matrices["linear.weight"].scales.equal(scales)
