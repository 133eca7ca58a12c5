"""Training on the grid: what is rounded in training is what is shipped."""

from __future__ import annotations

import dataclasses

import pytest

from edgetune.data.prepare import prepare
from edgetune.model.base import load_tokenizer
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.hessian import Rows
from edgetune.quantize.matrices import grids_of
from edgetune.quantize.methods import round_weight
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe, TrainTable
from edgetune.runtime.grid import BundleGrid
from edgetune.train.on_grid import train_on_grid

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)


@pytest.fixture
def recipe(tiny_base, tiny_rows) -> Recipe:
    return Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), max_seq_len=128, eval_fraction=0.2),
        train=TrainTable(batch_size=4, gradient_accumulation_steps=1),
        export=ExportTable(on_grid_steps=8, on_grid_learning_rate=1e-2, repair_steps=0),
    )


@pytest.fixture
def rows(recipe, tiny_base, tmp_path) -> Rows:
    tokenizer = load_tokenizer(tiny_base)
    return Rows(prepare(recipe, tokenizer, cache=tmp_path / "cache"), tokenizer.pad_token_id or 0)


def test_the_loss_falls_and_integers_change(recipe, rows, tiny_base) -> None:
    places = find_tensors(tiny_base)
    bits = {name: own.bits for name, own in grids_of(places, GRID, ["o_proj"]).items()}
    done = train_on_grid(tiny_base, bits, recipe, GRID, rows.prepared, pad_id=rows.pad_id)
    assert min(loss for _, loss in done.curve[1:]) < done.curve[0][1]
    name = "model.layers.0.mlp.up_proj.weight"
    assert set(done.matrices) == {name for name, count in bits.items() if count == 4}
    assert "model.layers.0.self_attn.o_proj.weight" not in done.matrices
    before = round_weight(read_tensor(places[name]), GRID, "rtn")
    assert not done.matrices[name].packed.equal(before.packed)


@pytest.mark.parametrize("level", [0, 4])
def test_training_starts_from_the_very_model_that_would_be_shipped(recipe, rows, tiny_base, level) -> None:
    """Matrices rounded by their extremes, embedding and head on their own grid, inputs as the kernels see them."""
    grid, places = dataclasses.replace(GRID, accuracy_level=level), find_tensors(tiny_base)
    grids = grids_of(places, grid)
    bits = {name: own.bits for name, own in grids.items()}
    done = train_on_grid(tiny_base, bits, recipe, grid, rows.prepared, pad_id=rows.pad_id)
    methods = {name: "rtn" if count == 4 else "search" for name, count in bits.items()}
    matrices = {name: round_weight(read_tensor(places[name]), grids[name], method) for name, method in methods.items()}
    losses = [
        eval_loss(load_for_loss(tiny_base, matrices, rounds_inputs=rounds), rows.prepared, recipe, rows.pad_id)
        for rounds in (level == 4, level != 4)
    ]
    assert done.curve[0][1] == pytest.approx(losses[0], rel=1e-6)
    assert abs(losses[1] / losses[0] - 1) > 1e-5  # what is rounded makes a difference that would be seen


def test_the_folder_holds_what_was_trained_and_says_so(recipe, rows, tiny_base, tmp_path) -> None:
    folder = quantize_decoder(tiny_base, tmp_path / "grid", recipe, GRID, rows=rows)
    losses = [loss for _, loss in folder.record["on_grid"]["curve"]]
    assert min(losses) <= losses[0]
    again = quantize_decoder(tiny_base, tmp_path / "again", recipe, GRID, rows=rows)
    assert all(folder[name].packed.equal(again[name].packed) for name in folder)


def test_repair_may_follow(recipe, rows, tiny_base, tmp_path) -> None:
    both = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, repair_steps=4))
    folder = quantize_decoder(tiny_base, tmp_path / "grid", both, GRID, rows=rows)
    trained = min(loss for _, loss in folder.record["on_grid"]["curve"])
    assert folder.record["repair"]["loss_before"] == pytest.approx(trained, rel=1e-4)
