"""The deployment grid: the int2, int4 and int8 numbers that ONNX Runtime's MatMulNBits holds. ONE quantiser for all.

Fake quantisation in training, the bytes of a bundle and the tests call these functions. A weight W (N, K) is cut along
K into blocks of `block_size`, the last one padded; each block has a scale s and a zero point z, and a weight is
s * (code - z). Scales are bfloat16-valued: kernels which keep them as fp32, bf16 or fp16 all compute with one number.
Source: onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.quantize.scales import Choose, by_search, round_to_grid
from edgetune.runtime.grid import Grid

_CHUNK_WEIGHTS = 1 << 18
"""Weights searched at a time: temporaries stay in the cache and peak memory does not grow with the matrix."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight (N, K) on the grid, in the bytes of MatMulNBits."""

    packed: Tensor
    """uint8 (N, blocks, block_size * bits / 8), lowest bits first: input B."""
    scales: Tensor
    """float32 (N, blocks), every value a bfloat16: input scales. A graph's file holds them as bfloat16."""
    zero_points: Tensor | None
    """uint8 (N, ceil(blocks * bits / 8)), lowest bits first; None on the symmetric grid: 2 ** (bits - 1)."""
    bits: int
    block_size: int
    in_features: int
    """K; the columns after it in the last block are padding and hold exact zeros."""

    @property
    def grid(self) -> Grid:
        """Which numbers it may hold."""
        return Grid(self.bits, self.block_size, symmetric=self.zero_points is None)


def quantize(weight: Tensor, grid: Grid, choose: Choose = by_search) -> QuantizedMatrix:
    """The weight (N, K), each number of it to the nearest of the grid, scales by `choose`; computed in float32.

    The same weight gives the same bytes whatever rows stand beside it: fused projections equal separate ones. Raises
    ModelError if it holds NaN or infinity.
    """
    blocks = -(-weight.shape[1] // grid.block_size)
    rows_at_once = max(1, _CHUNK_WEIGHTS // (blocks * grid.block_size))
    with one_thread():
        encoded = [_encode(rows, grid, choose) for rows in weight.detach().split(rows_at_once)]
    return join_rows(encoded)


def from_codes(codes: Tensor, scales: Tensor, zeros: Tensor, grid: Grid, *, in_features: int) -> QuantizedMatrix:
    """The bytes of codes (N, blocks, block_size) with scales and zero points (N, blocks), whole numbers as float32."""
    return QuantizedMatrix(
        packed=pack(codes.to(torch.uint8), grid.bits),
        scales=scales,
        zero_points=None if grid.symmetric else pack(zeros.to(torch.uint8), grid.bits),
        bits=grid.bits,
        block_size=grid.block_size,
        in_features=in_features,
    )


def join_rows(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices (N1, K), (N2, K) ... of one grid -> (N1 + N2 + ..., K): blocks lie along K, so rows never mix."""
    zero_points = [matrix.zero_points for matrix in matrices if matrix.zero_points is not None]
    return dataclasses.replace(
        matrices[0],
        packed=torch.cat([matrix.packed for matrix in matrices]),
        scales=torch.cat([matrix.scales for matrix in matrices]),
        zero_points=torch.cat(zero_points) if zero_points else None,
    )


def take_rows(matrix: QuantizedMatrix, start: int, stop: int) -> QuantizedMatrix:
    """Rows start to stop of a matrix (N, K)."""
    zero_points = None if matrix.zero_points is None else matrix.zero_points[start:stop]
    packed, scales = matrix.packed[start:stop], matrix.scales[start:stop]
    return dataclasses.replace(matrix, packed=packed, scales=scales, zero_points=zero_points)


def dequantize(matrix: QuantizedMatrix) -> Tensor:
    """QuantizedMatrix -> (N, K) float32, the very numbers that the kernels compute with."""
    rows, blocks, _ = matrix.packed.shape
    values = unpack(matrix.packed, matrix.bits, matrix.block_size).float()
    if matrix.zero_points is None:
        values -= 2 ** (matrix.bits - 1)
    else:
        values -= unpack(matrix.zero_points, matrix.bits, blocks).float().unsqueeze(-1)
    values *= matrix.scales.unsqueeze(-1)
    return values.view(rows, -1)[:, : matrix.in_features]


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (..., n) -> uint8 bytes (..., ceil(n * bits / 8)), lowest bits first, the last filled with zero."""
    count = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % count))
    packed = codes[..., 0::count].clone()
    for place in range(1, count):
        packed |= codes[..., place::count] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 (..., ceil(count * bits / 8)) -> uint8 codes (..., count)."""
    if bits == 8:
        return packed[..., :count]
    codes = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(codes, dim=-1).flatten(-2)[..., :count]


def _encode(weight: Tensor, grid: Grid, choose: Choose) -> QuantizedMatrix:
    """These rows (n, K) on the grid."""
    blocks = _blocked(weight, grid.block_size)
    refuse_infinite(blocks)
    scales, zeros = choose(blocks, grid)
    codes = round_to_grid(blocks, scales, zeros, grid.bits)
    return from_codes(codes, scales, zeros, grid, in_features=weight.shape[1])


def refuse_infinite(weight: Tensor) -> None:
    """Raises ModelError if a weight holds NaN or infinity."""
    if not torch.isfinite(weight).all():
        raise ModelError("a weight holds NaN or infinity and cannot be quantised", cure="look at the training loss")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread: a chunk is too small for barriers, where all wait for a thread that has no core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _blocked(weight: Tensor, block_size: int) -> Tensor:
    """(N, K) -> float32 (N, blocks, block_size), the last block padded with zeros."""
    padding = -weight.shape[1] % block_size
    values = torch.nn.functional.pad(weight.float(), (0, padding))
    return values.view(weight.shape[0], -1, block_size)
