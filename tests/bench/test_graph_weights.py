"""bench/graph_weights.py: what a token costs in a graph whose weights are on the grid."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from edgetune.bench.graph_weights import count_weights
from edgetune.export.decoder import build_decoder
from edgetune.model.on_device import expect_on_device
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import ModelTable


@pytest.mark.parametrize("is_tied", [True, False])
def test_scales_count_as_the_float32_that_they_are_in_memory(is_tied, a_decoder, a_recipe, tmp_path) -> None:
    """And an embedding of its own is merely looked up, its scales too."""
    folder = a_decoder(tie_word_embeddings=is_tied)
    recipe = dataclasses.replace(a_recipe(block_size=32), model=ModelTable(base=str(folder)))
    build_decoder(folder, tmp_path, precision="int4", grid=grid_of(recipe.export))
    found = count_weights(ir.load(tmp_path / "model.onnx").graph, 512)
    tables = 2 * 256 * 16 * 4
    counts = 200  # shapes and indices
    assert 0 <= found.bytes - tables - expect_on_device(recipe).read_bytes < counts
    assert (found.body, found.head) == (2 * (64 * 128 + 64 * 64 + 3 * 64 * 172), 512 * 64)
