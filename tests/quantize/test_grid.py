"""quantize/grid.py: the numbers and bytes of MatMulNBits."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edgetune.errors import ModelError
from edgetune.quantize import grid, hqq, scales
from edgetune.quantize.methods import ROUNDERS, round_weight
from edgetune.quantize.precisions import BLOCK_SIZES
from edgetune.recipe import CALIBRATED
from edgetune.runtime.grid import BITS, Grid

INT4 = Grid(4, 32, symmetric=False)
PLAIN = [method for method in ROUNDERS if method not in CALIBRATED]
SYMMETRIC = (True, False)


def a_weight(rows: int = 24, columns: int = 172, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("columns", [64, 172, 352])
def test_matmulnbits_computes_with_exactly_our_dequantised_numbers(bits, symmetric, block_size, columns):
    """Identity in, weights out: the kernel at accuracy level 0 multiplies fp32 by what `dequantize` says."""
    weight = a_weight(columns=columns)
    matrix = grid.quantize(weight, Grid(bits, block_size, symmetric))
    found = run_matmulnbits(np.eye(columns, dtype=np.float32), matrix)
    np.testing.assert_array_equal(found.T, grid.dequantize(matrix).numpy())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_accuracy_level_4_stays_within_the_rounding_of_its_int8_activations(bits, symmetric):
    """Activations are rounded to absmax / 127 a block, an error of at most half a step each."""
    weight = a_weight(columns=256)
    matrix = grid.quantize(weight, Grid(bits, 32, symmetric))
    inputs = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    exact = inputs @ grid.dequantize(matrix).numpy().T
    bound = np.abs(inputs).max() / 127 / 2 * grid.dequantize(matrix).abs().sum(1).numpy()
    assert (np.abs(run_matmulnbits(inputs, matrix, accuracy_level=4) - exact) <= bound + 1e-5).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_the_search_beats_rounding_to_nearest(bits, symmetric):
    weight = a_weight(64, 512)
    errors = {}
    for method in ("rtn", "search"):
        matrix = round_weight(weight, Grid(bits, 64, symmetric), method)
        errors[method] = (grid.dequantize(matrix) - weight).square().mean().item()
    assert errors["search"] < errors["rtn"] * (1.0 if bits == 8 else 0.95)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_half_quadratic_rounding_forgives_outliers(bits, symmetric):
    """In the norm that it minimises no block is worse than by its extremes; with few bits the whole is better."""
    weight = a_weight(64, 512)
    weight[:, ::50] *= 8
    sums = {}
    for method in ("rtn", "hqq"):
        matrix = round_weight(weight, Grid(bits, 64, symmetric), method)
        sums[method] = (grid.dequantize(matrix) - weight).abs().pow(hqq.NORM).view(64, 8, 64).sum(-1)
    assert (sums["hqq"] <= sums["rtn"] * (1 + 1e-5)).all()
    if bits < 8:
        assert sums["hqq"].mean() < sums["rtn"].mean() * 0.98


def test_four_codes_of_two_bits_share_a_byte_the_first_one_lowest():
    codes = torch.tensor([[1, 2, 3, 0, 3]], dtype=torch.uint8)
    assert grid.pack(codes, 2).tolist() == [[1 + 2 * 4 + 3 * 16, 3]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("method", PLAIN)
def test_no_weight_is_further_off_than_the_grid_allows(bits, symmetric, method):
    weight = a_weight()
    matrix = round_weight(weight, Grid(bits, 16, symmetric), method)
    error = (grid.dequantize(matrix) - weight).square().sum()
    steps = 2**bits - 1
    assert error < weight.square().sum() * (4 / steps) ** 2


def test_scales_are_bfloat16_values_of_at_least_the_least_float16():
    for weight in (a_weight(), a_weight() * 1e-6, torch.zeros(4, 64)):
        for symmetric in SYMMETRIC:
            for method in PLAIN:
                found = round_weight(weight, Grid(4, 32, symmetric), method).scales
                assert torch.equal(found.to(torch.bfloat16).float(), found)
                assert torch.equal(found.to(torch.float16).float(), found)
                assert (found.abs() >= scales.LEAST_SCALE).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_zeros_stay_exact_zeros_padding_included(bits, symmetric):
    weight = a_weight(8, 172)
    weight[:, 100:130] = 0
    weight[3] = 0
    matrix = grid.quantize(weight, Grid(bits, 64, symmetric))
    assert (grid.dequantize(matrix)[weight == 0] == 0).all()
    whole = grid.dequantize(grid.QuantizedMatrix(**{**vars(matrix), "in_features": matrix.packed.shape[1] * 64}))
    assert (whole[:, 172:] == 0).all()


def test_rows_are_independent_so_fused_projections_equal_separate_ones():
    first, second = a_weight(seed=1), a_weight(seed=2)
    fused = grid.quantize(torch.cat([first, second]), INT4)
    apart = [grid.quantize(part, INT4) for part in (first, second)]
    for name in ("packed", "scales", "zero_points"):
        assert torch.equal(getattr(fused, name), torch.cat([getattr(part, name) for part in apart]))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_packing_turns_back(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = grid.pack(codes, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    assert torch.equal(grid.unpack(packed, bits, count), codes)


def test_what_lies_on_the_grid_stays_there():
    """Quantising the dequantised numbers again loses nothing on the symmetric grid with its extreme level in use."""
    matrix = round_weight(a_weight(16, 64), Grid(4, 32, symmetric=True), "rtn")
    again = round_weight(grid.dequantize(matrix), matrix.grid, "search")
    assert torch.equal(grid.dequantize(again), grid.dequantize(matrix))


def test_bfloat16_weights_are_rounded_in_float32():
    weight = a_weight().to(torch.bfloat16)
    low, high = (grid.quantize(value, INT4) for value in (weight, weight.float()))
    assert torch.equal(low.packed, high.packed)
    assert torch.equal(low.scales, high.scales)


def test_nan_and_infinity_are_refused():
    for bad in (float("nan"), float("inf")):
        weight = a_weight()
        weight[0, 0] = bad
        with pytest.raises(ModelError, match="NaN or infinity"):
            grid.quantize(weight, INT4)


def run_matmulnbits(inputs: np.ndarray, matrix: grid.QuantizedMatrix, accuracy_level: int = 0) -> np.ndarray:
    """(m, K) float32 -> (m, N) float32 by onnxruntime's CPU kernel."""
    tensors = {"b": matrix.packed.numpy(), "s": matrix.scales.numpy()}
    if matrix.zero_points is not None:
        tensors["z"] = matrix.zero_points.numpy()
    rows = matrix.packed.shape[0]
    node = helper.make_node(
        "MatMulNBits",
        ["a", *tensors],
        ["y"],
        domain="com.microsoft",
        K=matrix.in_features,
        N=rows,
        bits=matrix.bits,
        block_size=matrix.block_size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", matrix.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", rows])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"a": inputs})[0]
