"""The precisions of a bundle: one row each, with all that a precision asks of those who make, prove and count it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgetune.precision_names import BlockSize, PrecisionName
from edgetune.recipe import INT2_BLOCK_SIZES, ExportTable
from edgetune.runtime.grid import BundleGrid

BLOCK_SIZES: tuple[int, ...] = get_args(BlockSize)
STORED_SCALE_BYTES, HELD_SCALE_BYTES = 2, 4
"""Of a block's scale: a bfloat16 in the file, a float32 in the memory of the runtime."""


@dataclass(frozen=True)
class Precision:
    """How a bundle holds its matrices, and what that means elsewhere."""

    name: PrecisionName
    bits: int | None
    """Of a weight's code on the grid; None where matrices are floats."""
    floats: Literal["fp16", "fp32"] = "fp32"
    """The type of states, and of all weights that are not on the grid, in the word of onnxruntime-genai's builder."""
    wider: PrecisionName | None = None
    """What to try where it loses too much."""
    block_sizes: tuple[int, ...] = BLOCK_SIZES
    """Those for which onnxruntime's kernels are fast."""
    logits_limit: float = 1e-3
    """Of the difference to torch in standard deviations of the logits. float32 in another order of summation gives
    1e-5, float16 throughout 1e-2."""
    table_limit: float = 1e-5
    """Of the difference of cosines and sines; float32 on another processor 1e-6, many turns of the fastest rotation
    more."""

    @property
    def float_bytes(self) -> int:
        """Of a weight that is not on the grid."""
        return 2 if self.floats == "fp16" else 4

    @property
    def has_few_bits(self) -> bool:
        """Whether rounding loses so much that rows are worth looking at: calibration and repair."""
        return self.bits is not None and self.bits < 8


_ROWS = (
    Precision("int2", bits=2, wider="int8", block_sizes=INT2_BLOCK_SIZES),
    Precision("int4", bits=4, wider="int8"),
    Precision("int8", bits=8, wider="fp32"),
    Precision("fp16", bits=None, floats="fp16", wider="fp32", logits_limit=5e-2, table_limit=1e-3),
    Precision("fp32", bits=None),
)
PRECISIONS: dict[str, Precision] = {row.name: row for row in _ROWS}


def grid_of(table: ExportTable) -> BundleGrid | None:
    """The grid that an [export] table asks for; None for fp16 and fp32. Raises ValueError if there is no such grid."""
    bits = PRECISIONS[table.precision].bits
    if bits is None:
        return None
    return BundleGrid(
        bits=bits,
        block_size=table.block_size,
        symmetric=table.symmetric,
        accuracy_level=table.accuracy_level,
        head_bits=max(bits, table.head_bits),
    )
