"""What repair trained is what the device computes: bundle and torch model agree logit by logit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetune.bundle.generation import build_bundle, training_rows
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe, TrainTable
from edgetune.runtime.logits import Logits

IDS = [5, 9, 17, 33, 65, 12, 40, 7]


def torch_logits(merged: Path, folder: QuantizedFolder, level: int) -> np.ndarray:
    """(len(IDS), V) of a merged folder on the grid, as repair sees it."""
    model = load_on_grid(merged, folder, rounds_inputs=level == 4, vectors=folder.vectors)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.usefixtures("labels_alone")
@pytest.mark.parametrize("level", [4, 0])
def test_bundle_and_torch_agree_after_repair(tiny_base, tiny_rows, tmp_path, monkeypatch, level):
    monkeypatch.setattr("edgetune.quantize.repair.LEARNING_RATE", 1e-2)  # so that few steps are seen
    recipe = Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), max_seq_len=128, eval_fraction=0.2),
        train=TrainTable(batch_size=4, gradient_accumulation_steps=1),
        export=ExportTable(block_size=32, accuracy_level=level, repair_steps=12),
    )
    grid = grid_of(recipe.export)
    rows = training_rows(tiny_base, recipe, tmp_path / "cache")
    folder = quantize_decoder(tiny_base, tmp_path / "grid", recipe, grid, rows=rows)
    assert folder.record["repair"]["best_step"] > 0  # else the scales would be those of rounding, which others test
    built = tmp_path / "bundle"
    built.mkdir()
    bundle, _ = build_bundle(tiny_base, built, recipe, is_chat=True, quantized=folder)
    expected = torch_logits(tiny_base, folder, level)
    found = Logits(bundle).logits(IDS)
    limit = 2e-5 * np.abs(expected).max()
    differences = np.abs(found - expected).max(-1)
    # at level 4 an input that lies between two int8 steps may go to either, and all tokens after it see that
    assert (differences.min() if level == 4 else differences.max()) < limit
    other = dataclasses.replace(recipe.export, repair_steps=0)
    plain = quantize_decoder(tiny_base, tmp_path / "plain", dataclasses.replace(recipe, export=other), grid, rows=rows)
    unrepaired = torch_logits(tiny_base, plain, level)
    assert np.abs(found - unrepaired).max() > 100 * limit
