"""A model on the grid as a folder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgetune.errors import ModelError
from edgetune.quantize.folder import QuantizedFolder, write_quantized
from edgetune.quantize.matrices import round_all
from edgetune.runtime.grid import BundleGrid

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)


def test_a_folder_that_lacks_a_matrix_is_refused(tiny_base, tmp_path):
    write_quantized(tmp_path / "grid", round_all(tiny_base, GRID))
    record = tmp_path / "grid" / "quantized.json"
    record.write_text(record.read_text().replace("layers.1.mlp.up_proj", "layers.7.mlp.up_proj"))
    with pytest.raises(ModelError, match=r"model\.layers\.7\.mlp\.up_proj\.weight is missing; export again"):
        QuantizedFolder(tmp_path / "grid")


def test_a_folder_gives_back_the_matrices_it_was_given(tiny_base, tmp_path):
    before = round_all(tiny_base, dataclasses.replace(GRID, symmetric=True))
    after = write_quantized(tmp_path / "grid", before, vectors={"a.norm.weight": torch.ones(3)})
    assert list(after) == list(before)
    assert list(after.vectors) == ["a.norm.weight"]
    for name in before:
        assert after[name].packed.equal(before[name].packed)
        assert after[name].scales.equal(before[name].scales)
        assert after[name].zero_points is None
