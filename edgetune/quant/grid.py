"""The deployment grid: the int4 and int8 numbers that ONNX Runtime's MatMulNBits holds. ONE quantiser for all.

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
from typing import Literal

import torch
from torch import Tensor

from edgetune.errors import ModelError

Method = Literal["search", "rtn"]
"""How scale and zero point of a block are chosen: least squared error among many, or from the block's extremes."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
LEAST_SCALE = 2.0**-14
"""Scales are no smaller than the smallest normal float16, so that fp16 kernels hold them too."""

_CHUNK_WEIGHTS = 1 << 18
"""Weights searched at a time: temporaries stay in the cache and peak memory does not grow with the matrix."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight (N, K) on the grid, in the bytes of MatMulNBits."""

    packed: Tensor
    """uint8 (N, blocks, block_size * bits / 8), low nibble first: input B."""
    scales: Tensor
    """float32 (N, blocks), every value a bfloat16: input scales."""
    zero_points: Tensor | None
    """uint8 (N, ceil(blocks * bits / 8)), low nibble first; None on the symmetric grid, where it is 2 ** (bits - 1)."""
    bits: int
    block_size: int
    in_features: int
    """K; the columns after it in the last block are padding and hold exact zeros."""


def quantize(
    weight: Tensor, *, bits: int, block_size: int, symmetric: bool = False, method: Method = "search"
) -> QuantizedMatrix:
    """The weight (N, K) on the grid, computed in float32. Raises ModelError if it holds NaN or infinity.

    The same weight gives the same bytes whatever rows stand beside it: fused projections equal separate ones.
    """
    if bits not in (4, 8) or block_size not in BLOCK_SIZES:
        raise ValueError(f"no grid of {bits} bits and blocks of {block_size}")
    columns = weight.shape[1]
    blocks = -(-columns // block_size)
    rows_at_once = max(1, _CHUNK_WEIGHTS // (blocks * block_size))
    parts = weight.detach().split(rows_at_once)
    with one_thread():
        encoded = [_encode(_blocked(part, block_size), bits, symmetric, method, columns) for part in parts]
    return join_rows(encoded)


def from_codes(
    codes: Tensor, scales: Tensor, zeros: Tensor, *, bits: int, symmetric: bool, in_features: int
) -> QuantizedMatrix:
    """The bytes of codes (N, blocks, block_size) with scales and zero points (N, blocks), whole numbers as float32."""
    return QuantizedMatrix(
        packed=pack(codes.to(torch.uint8), bits),
        scales=scales,
        zero_points=None if symmetric else pack(zeros.to(torch.uint8), bits),
        bits=bits,
        block_size=codes.shape[-1],
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


def round_to_grid(blocks: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """blocks (..., block_size), scales and zero_points (...,) -> codes (..., block_size), float32 integers.

    Half goes to even, as everywhere in float32.
    """
    codes = blocks / scales.unsqueeze(-1)
    return codes.round_().add_(zero_points.unsqueeze(-1)).clamp_(0, 2**bits - 1)


def choose(blocks: Tensor, *, bits: int, symmetric: bool, method: Method) -> tuple[Tensor, Tensor]:
    """float32 blocks (..., block_size) -> scales and zero points (...,), float32; scales as the grid holds them.

    "rtn" takes them from the extremes: symmetric, the largest magnitude becomes code 0 (a signed scale uses all levels,
    as MLAS does). "search" starts there, shrinks the range step by step and refits each scale by least squares,
    keeping what rounds with the least squared error (the idea of llama.cpp's make_qkx2_quants).
    """
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        start, zeros = extreme / -middle, torch.full_like(extreme, middle)
    else:
        low, high = blocks.amin(-1).clamp_(max=0), blocks.amax(-1).clamp_(min=0)
        start = (high - low) / top
        zeros = (-low / storable(start)).round_().clamp_(0, top)
    scales = storable(start)
    if method == "rtn":
        return scales, zeros
    best = _Best(blocks, scales, zeros, bits)
    for shrink in _SHRINKS[bits]:
        candidate = storable(start * shrink)
        shifted = zeros if symmetric else (-low * shrink / candidate).round_().clamp_(0, top)
        best.offer(best.offer(candidate, shifted), shifted)
    for shift in () if symmetric else (1, -1, 1, -1):
        shifted = (best.zeros + shift).clamp_(0, top)
        best.offer(best.offer(best.scales, shifted), shifted)
    best.offer(best.offer(best.scales, best.zeros), best.zeros)
    return best.scales, best.zeros


_SHRINKS = {4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72), 8: (1.0, 0.99, 0.98, 0.96)}
"""Shares of the full range that are tried; eight bits have little to win."""


def storable(scales: Tensor) -> Tensor:
    """float32 scales -> the nearest that the grid holds: bfloat16 values, magnitude at least LEAST_SCALE, sign kept."""
    scales = scales.to(torch.bfloat16).float()
    return torch.where(scales.abs() < LEAST_SCALE, torch.full_like(scales, LEAST_SCALE).copysign(scales), scales)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (..., n) -> uint8 bytes (..., ceil(n * bits / 8)), low nibble first, the last filled with zero."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 (..., ceil(count * bits / 8)) -> uint8 codes (..., count)."""
    if bits == 8:
        return packed[..., :count]
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :count]


def _encode(blocks: Tensor, bits: int, symmetric: bool, method: Method, columns: int) -> QuantizedMatrix:
    """float32 (n, blocks, block_size), of which `columns` are no padding -> these rows on the grid."""
    refuse_infinite(blocks)
    scales, zeros = choose(blocks, bits=bits, symmetric=symmetric, method=method)
    codes = round_to_grid(blocks, scales, zeros, bits)
    return from_codes(codes, scales, zeros, bits=bits, symmetric=symmetric, in_features=columns)


def refuse_infinite(weight: Tensor) -> None:
    """Raises ModelError if a weight holds NaN or infinity."""
    if not torch.isfinite(weight).all():
        raise ModelError("a weight holds NaN or infinity and cannot be quantised", cure="look at the training loss")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread: a chunk is too small for a barrier (on two busy cores 30 to 100 times slower)."""
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


class _Best:
    """The scales and zero points that rounded the blocks with the least squared error so far."""

    def __init__(self, blocks: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> None:
        self.blocks, self.bits = blocks, bits
        self.norms = torch.linalg.vecdot(blocks, blocks)
        self.errors = torch.full_like(scales, torch.inf)
        self.scales, self.zeros = scales, zeros
        self.offer(scales, zeros)

    def offer(self, scales: Tensor, zeros: Tensor) -> Tensor:
        """Keep the candidates (...,) where they are better; the storable scales that fit their codes best.

        With codes c around the zero point, the error is <w, w> - 2 s <w, c> + s^2 <c, c>, least at s = <w, c> / <c, c>.
        """
        levels = (self.blocks * (1 / scales).unsqueeze(-1)).round_()
        levels = torch.minimum(torch.maximum(levels, -zeros.unsqueeze(-1)), (2**self.bits - 1 - zeros).unsqueeze(-1))
        cross, square = torch.linalg.vecdot(self.blocks, levels), torch.linalg.vecdot(levels, levels)
        errors = self.norms + scales * (scales * square - 2 * cross)
        better = errors < self.errors
        self.errors = torch.where(better, errors, self.errors)
        self.scales = torch.where(better, scales, self.scales)
        self.zeros = torch.where(better, zeros, self.zeros)
        return storable(torch.where(square > 0, cross / square.clamp(min=1), scales))
