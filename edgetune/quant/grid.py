"""The deployment grid: the int4 and int8 numbers that ONNX Runtime's MatMulNBits holds. ONE quantiser for all.

Fake quantisation in training, the bytes of a bundle and the tests call these functions. A weight W (N, K) is cut along K
into blocks of `block_size` (the last one padded); each block has a scale s, bfloat16-valued so that kernels which keep
scales as fp32, bf16 or fp16 all compute with the same number, and a zero point z; a weight is s * (code - z).
Source: onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Method = Literal["search", "rtn"]
"""How scale and zero point of a block are chosen: least squared error among many, or from the block's extremes."""

LEAST_SCALE = 2.0**-14
"""Scales are no smaller than the smallest normal float16, so that fp16 kernels hold them too."""


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
    """The weight (N, K) on the grid, computed in float32. Raises ModelError if it holds NaN or infinity."""
    ...


def dequantize(matrix: QuantizedMatrix) -> Tensor:
    """QuantizedMatrix -> (N, K) float32, the very numbers that the kernels compute with."""
    ...


def round_to_grid(blocks: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """blocks (..., block_size), scales and zero_points (...,) -> codes (..., block_size), float32 integers."""
    ...


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (..., n) -> uint8 bytes (..., ceil(n * bits / 8)), low nibble first, the last filled with zero."""
    ...


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 (..., ceil(count * bits / 8)) -> uint8 codes (..., count)."""
    ...
