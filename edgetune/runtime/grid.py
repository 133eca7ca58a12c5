"""The grid: which numbers the matrices of a bundle may hold, in the words of onnxruntime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from edgetune.precision_names import BlockSize

BITS = (2, 4, 8)
"""Of a weight's code: those for which there are kernels."""


@dataclass(frozen=True)
class Grid:
    """The numbers that a matrix may hold: scale * (code - zero point)."""

    bits: int
    """Of a code."""
    block_size: int
    """Weights of a row that share a scale and a zero point."""
    symmetric: bool
    """Whether the zero point is the middle code everywhere, and not a block's own."""

    def __post_init__(self) -> None:
        """Raises ValueError for a grid that there is no kernel for."""
        if self.bits not in BITS or self.block_size not in get_args(BlockSize):
            raise ValueError(f"no grid of {self.bits} bits and blocks of {self.block_size}")

    def with_bits(self, bits: int) -> Grid:
        """The same blocks with codes of so many bits."""
        return Grid(bits, self.block_size, self.symmetric)


@dataclass(frozen=True)
class BundleGrid(Grid):
    """The grid of a bundle's layers, and what its other matrices and its kernels do otherwise."""

    accuracy_level: int
    """MatMulNBits: 4 multiplies in int8, 0 in the type of the activations."""
    head_bits: int
    """Of a code of the output head and of the embedding."""

    @property
    def head(self) -> Grid:
        """That of the output head and the embedding."""
        return self.with_bits(self.head_bits)
