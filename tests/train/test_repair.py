"""Repair as a whole: it never makes a model worse, and what it trained is what is written and shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from edgetune.data.prepare import prepare
from edgetune.errors import RecipeError, RunError
from edgetune.export.moments import Rows
from edgetune.export.quantize import quantize_decoder, round_all
from edgetune.model.base import load_tokenizer
from edgetune.quant.folder import QuantizedFolder, write_quantized
from edgetune.quant.grid import dequantize
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe, TrainTable
from edgetune.runtime.bundle import Grid
from edgetune.train.repair import eval_loss, load_on_grid, repair

GRID = Grid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)


@pytest.fixture
def recipe(tiny_base, tiny_rows) -> Recipe:
    return Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), max_seq_len=128, eval_fraction=0.2),
        train=TrainTable(batch_size=4, gradient_accumulation_steps=1),
        export=ExportTable(repair_steps=12, repair_learning_rate=1e-2),
    )


@pytest.fixture
def rows(recipe, tiny_base, tmp_path):
    tokenizer = load_tokenizer(tiny_base)
    return Rows(prepare(recipe, tokenizer, cache=tmp_path / "cache"), tokenizer.pad_token_id or 0)


def repaired(recipe: Recipe, tiny_base: Path, rows: Rows, **export: object):
    table = dataclasses.replace(recipe.export, **export)  # type: ignore[arg-type]
    recipe = dataclasses.replace(recipe, export=table)
    return repair(tiny_base, round_all(tiny_base, GRID), rows.prepared, recipe, pad_id=rows.pad_id)


@pytest.mark.parametrize("target", ["labels", "teacher", "both"])
def test_the_loss_falls_and_the_integers_stay(recipe, tiny_base, rows, target):
    done = repaired(recipe, tiny_base, rows, repair_on=target)
    before = round_all(tiny_base, GRID)
    assert all(done.matrices[name].packed.equal(before[name].packed) for name in before)
    if target == "teacher":  # random as it is, it has nothing to teach
        assert done.loss_after <= done.loss_before
        return
    assert done.loss_after < done.loss_before
    assert any(not done.matrices[name].scales.equal(before[name].scales) for name in before)


def test_a_repair_that_makes_it_worse_is_not_kept(recipe, tiny_base, rows):
    done = repaired(recipe, tiny_base, rows, repair_learning_rate=0.9, repair_on="teacher")
    before = round_all(tiny_base, GRID)
    if done.best_step == 0:
        assert all(done.matrices[name].scales.equal(before[name].scales) for name in before)
    assert done.loss_after == min(loss for _, loss in done.curve)
    assert done.loss_after <= done.loss_before


def test_the_same_seed_gives_the_same_repair(recipe, tiny_base, rows):
    first, second = (repaired(recipe, tiny_base, rows) for _ in range(2))
    assert first.curve == second.curve
    assert all(first.matrices[name].scales.equal(second.matrices[name].scales) for name in first.matrices)


def test_a_loss_that_is_no_number_is_one_line(recipe, tiny_base, rows, monkeypatch):
    monkeypatch.setattr("edgetune.train.repair._make_step", lambda *_: float("nan"))
    with pytest.raises(RunError, match="repair, step 1: the loss is nan"):
        repaired(recipe, tiny_base, rows)


def test_what_was_trained_is_what_is_written(recipe, tiny_base, rows, tmp_path):
    folder = quantize_decoder(tiny_base, tmp_path / "grid", recipe, GRID, rows=rows)
    again = QuantizedFolder(tmp_path / "grid")
    assert folder.record["repair"]["loss_after"] <= folder.record["repair"]["loss_before"]
    model = load_on_grid(tiny_base, again, rounds_inputs=False, vectors=again.vectors)
    done = eval_loss(model, rows.prepared, recipe, rows.pad_id)
    rounding = load_on_grid(tiny_base, again, rounds_inputs=True, vectors=again.vectors)
    assert eval_loss(rounding, rows.prepared, recipe, rows.pad_id) == pytest.approx(
        folder.record["repair"]["loss_after"], rel=1e-5
    )
    assert done == pytest.approx(folder.record["repair"]["loss_after"], rel=0.05)
    name = "model.layers.0.mlp.down_proj"
    x = torch.randn(2, again[f"{name}.weight"].in_features)
    torch.testing.assert_close(model.get_submodule(name)(x), x @ dequantize(again[f"{name}.weight"]).T)
    assert set(again.vectors) == {key for key, value in model.named_parameters() if value.dim() == 1}


def test_a_method_without_its_rows_is_one_line(recipe, tiny_base, tmp_path):
    asked = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, method="awq"))
    with pytest.raises(RecipeError, match='"awq": needs training rows; give rows, or take "search"'):
        quantize_decoder(tiny_base, tmp_path / "grid", asked, GRID)
    assert quantize_decoder(tiny_base, tmp_path / "grid", recipe, GRID).record["method"] == "search"


def test_scaled_channels_come_with_the_vectors_that_make_up_for_them(recipe, tiny_base, rows, tmp_path):
    table = dataclasses.replace(recipe.export, method="awq", calibration_rows=16, repair_steps=0)
    folder = quantize_decoder(tiny_base, tmp_path / "grid", dataclasses.replace(recipe, export=table), GRID, rows=rows)
    kinds = {name.split(".", 3)[3] for name in folder.vectors}
    assert kinds == {"input_layernorm.weight", "post_attention_layernorm.weight"}


@pytest.mark.parametrize("symmetric", [False, True])
def test_two_bits_are_repaired_like_four(recipe, tiny_base, rows, symmetric):
    before = round_all(tiny_base, dataclasses.replace(GRID, bits=2, symmetric=symmetric))
    done = repair(tiny_base, before, rows.prepared, recipe, pad_id=rows.pad_id)
    assert done.loss_after < done.loss_before
    assert all(done.matrices[name].packed.equal(before[name].packed) for name in before)


def test_a_folder_gives_back_the_matrices_it_was_given(tiny_base, tmp_path):
    before = round_all(tiny_base, dataclasses.replace(GRID, symmetric=True))
    after = write_quantized(tmp_path / "grid", before, vectors={"a.norm.weight": torch.ones(3)})
    assert list(after) == list(before)
    assert list(after.vectors) == ["a.norm.weight"]
    for name in before:
        assert after[name].packed.equal(before[name].packed)
        assert after[name].scales.equal(before[name].scales)
        assert after[name].zero_points is None
