"""runtime/grid.py: the numbers that matrices may hold."""

from __future__ import annotations

import re

import pytest

from edgetune.quantize.precisions import BLOCK_SIZES, PRECISIONS, grid_of
from edgetune.recipe import ExportTable
from edgetune.runtime.grid import BITS, BundleGrid, Grid


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (4, 48), (0, 32), (4, 512)])
def test_a_grid_that_no_kernel_has_cannot_be_made(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no grid of {bits} bits and blocks of {block_size}")):
        Grid(bits, block_size, symmetric=False)


def test_every_precision_and_block_size_of_a_recipe_has_its_grid() -> None:
    for precision, row in PRECISIONS.items():
        for size in BLOCK_SIZES:
            found = grid_of(ExportTable(precision=precision, block_size=size, symmetric=True))
            assert (found and found.with_bits(found.bits)) == (row.bits and Grid(row.bits, size, symmetric=True))
    assert {row.bits for row in PRECISIONS.values()} == {*BITS, None}


def test_head_and_layers_have_the_same_blocks() -> None:
    grid = BundleGrid(4, 64, True, accuracy_level=4, head_bits=8)
    assert grid.head == Grid(8, 64, symmetric=True)
    assert grid.with_bits(8) == grid.head
