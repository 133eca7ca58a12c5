"""precision_names.py: the command line, the recipe and the table of precisions have the same names."""

from __future__ import annotations

from typing import get_args, get_type_hints

from edgetune.precision_names import BlockSize, PrecisionName
from edgetune.quantize.precisions import PRECISIONS
from edgetune.recipe import ExportTable


def test_a_recipe_takes_what_the_command_line_offers_and_the_table_has() -> None:
    hints = get_type_hints(ExportTable)
    assert get_args(hints["precision"]) == get_args(PrecisionName)
    assert get_args(hints["block_size"]) == get_args(BlockSize)
    assert set(get_args(PrecisionName)) == set(PRECISIONS)
