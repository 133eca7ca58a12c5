"""quantize/smooth.py: a decoder with scaled channels is the same model in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgetune.data.prepare import prepare
from edgetune.model.base import load_merged, load_tokenizer
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.hessian import Rows
from edgetune.quantize.matrices import grids_of
from edgetune.quantize.smooth import find_groups, smooth_decoder, write_smoothed
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe
from edgetune.runtime.grid import BundleGrid

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)
KINDS = ("Gemma", "Gemma2", "Gemma3", "Granite", "Llama", "Mistral", "Phi3", "Qwen2", "Qwen3", "SmolLM3")
BIASED = {"attention_bias": True, "mlp_bias": True}


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(5, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_merged(folder, dtype=torch.float32)(input_ids=ids).logits


@pytest.mark.parametrize(("kind", "settings"), [*((kind, {}) for kind in KINDS), ("Llama", BIASED)])
def test_any_scales_leave_the_float_model_as_it_was(
    kind: str, settings: dict, a_decoder: Callable[..., Path], tmp_path: Path
) -> None:
    """Four query heads over two of keys and values; every norm, bias and matrix random."""
    merged = a_decoder(kind, num_attention_heads=4, num_key_value_heads=2, head_dim=16, **settings)
    groups = list(find_groups(merged))
    assert len(groups) == 8
    places = find_tensors(merged)
    generator = torch.Generator().manual_seed(1)
    scales = []
    for group in groups:
        channels = places[group.readers[0]].shape[1] // group.heads[0]
        scales.append((group, torch.rand(channels, generator=generator) * 3 + 0.3))
    write_smoothed(merged, tmp_path / "smoothed", scales)
    wanted, found = logits(merged), logits(tmp_path / "smoothed")
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    after = find_tensors(tmp_path / "smoothed")
    assert {name for group in groups for name in (*group.readers, group.maker)} == {
        name
        for name in places
        if not name.endswith("bias") and not read_tensor(after[name]).float().equal(read_tensor(places[name]).float())
    }


def test_scales_come_from_the_rows_and_layers_in_8_bits_have_none(tiny_base, tiny_rows, tmp_path) -> None:
    recipe = Recipe(
        ModelTable(base=str(tiny_base)),
        DataTable(train=str(tiny_rows), max_seq_len=128),
        export=ExportTable(method="awq", calibration_rows=16),
    )
    tokenizer = load_tokenizer(tiny_base)
    rows = Rows(prepare(recipe, tokenizer, cache=tmp_path / "cache"), tokenizer.pad_token_id or 0)
    places = find_tensors(tiny_base)
    grids = grids_of(places, GRID, ["layers.1.mlp.down_proj"])
    names = [name for name, own in grids.items() if own.bits == 4]
    smooth_decoder(tiny_base, tmp_path / "smoothed", recipe, GRID, rows, names=names)
    after = find_tensors(tmp_path / "smoothed")
    changed = {name for name in places if not read_tensor(after[name]).float().equal(read_tensor(places[name]).float())}
    assert "model.layers.1.mlp.down_proj.weight" not in changed
    assert "model.layers.1.input_layernorm.weight" in changed
    assert (logits(tmp_path / "smoothed") - logits(tiny_base)).abs().max() < 1e-5
