"""The precisions of a bundle, and the grid of each."""

from __future__ import annotations

from edgetune.recipe import ExportTable
from edgetune.runtime.bundle import Grid


def grid_of(table: ExportTable) -> Grid | None:
    """The grid that an [export] table asks for; None for fp16 and fp32."""
    bits = {"int2": 2, "int4": 4, "int8": 8}.get(table.precision)
    if bits is None:
        return None
    return Grid(
        bits=bits,
        block_size=table.block_size,
        symmetric=table.symmetric,
        accuracy_level=table.accuracy_level,
        head_bits=max(bits, table.head_bits),
    )
