"""model/fit.py: the least painful change first, no change without need."""

from __future__ import annotations

import dataclasses

import pytest

from edgetune.errors import OutOfMemoryError
from edgetune.model.fit import fit, settle, with_values
from edgetune.recipe import DataTable, LoraTable, ModelTable, Recipe, TrainTable


def peak(recipe: Recipe) -> int:
    """A device on which each key has a price that is easy to add up."""
    train = recipe.train
    tokens = recipe.batch_size * recipe.data.max_seq_len
    kept = tokens // 4 if recipe.gradient_checkpointing else tokens
    kept = kept // 2 if train.offload_activations else kept
    logits = 100 if train.fused_loss else tokens
    state = 50 if train.optimizer.endswith("8bit") else 200
    embedding = {"none": 40, "int8": 20, "nf4": 10}[recipe.model.embedding_quantization]
    return kept + logits + state + embedding + (60 if recipe.model.quantization == "nf4" else 360)


RECIPE = Recipe(
    ModelTable("x", quantization="none"),
    DataTable("x", max_seq_len=256),
    train=TrainTable(batch_size=4, gradient_accumulation_steps=4, fused_loss=False),
)


def keys(allowed: int, *, is_gpu: bool = True) -> list[str]:
    fitting, changes = fit(RECIPE, allowed, peak, is_gpu=is_gpu)
    assert peak(fitting) <= allowed
    assert changes == [] or changes[-1].peak_bytes == peak(fitting)
    rows = fitting.train.batch_size * fitting.train.gradient_accumulation_steps
    assert rows == RECIPE.train.batch_size * RECIPE.train.gradient_accumulation_steps
    for change in changes:
        assert change.cost
    applied = RECIPE
    for change in changes:
        applied = with_values(applied, change.values)
    assert applied == fitting
    return [key for change in changes for key in change.values]


def test_a_recipe_that_fits_is_left_alone() -> None:
    assert keys(peak(RECIPE)) == []


def test_what_costs_nothing_comes_first_and_the_sequence_length_last() -> None:
    batch = ["train.batch_size", "train.gradient_accumulation_steps"]
    assert keys(1724) == ["train.fused_loss"]
    assert keys(1700) == ["train.fused_loss", *batch]
    assert keys(800) == ["train.fused_loss", *batch, "train.gradient_checkpointing"]
    assert keys(650)[-2:] == ["train.gradient_checkpointing", "train.optimizer"]
    assert keys(590)[-1] == "train.offload_activations"
    assert keys(300)[-1] == "model.quantization"
    assert keys(265)[-1] == "model.embedding_quantization"
    assert keys(250)[-1] == "data.max_seq_len"


def test_embeddings_that_are_trained_stay_as_they_are() -> None:
    recipe = dataclasses.replace(RECIPE, lora=LoraTable(train_embeddings=True))
    fitting, _ = fit(recipe, 270, peak, is_gpu=True)
    assert fitting.model.embedding_quantization == "none"
    assert fitting.data.max_seq_len < recipe.data.max_seq_len


def test_a_change_that_later_ones_made_needless_is_taken_back() -> None:
    def steep(recipe: Recipe) -> int:
        return 10 if recipe.train.gradient_checkpointing else 1000 - recipe.train.gradient_accumulation_steps

    fitting, changes = fit(RECIPE, 100, steep, is_gpu=False)
    assert [change.values for change in changes] == [{"train.gradient_checkpointing": True}]
    assert fitting.train.batch_size == 4


def test_offloading_is_for_gpus() -> None:
    with pytest.raises(OutOfMemoryError, match="even with the smallest settings"):
        fit(RECIPE, 100, peak, is_gpu=True)
    assert "train.offload_activations" not in keys(300, is_gpu=False)


def test_a_batch_is_cut_by_its_divisors_only() -> None:
    odd = with_values(RECIPE, {"train.batch_size": 6})
    fitting, _ = fit(odd, 1700, peak, is_gpu=False)
    assert fitting.train.batch_size in (3, 2, 1)


def auto(**keys: object) -> Recipe:
    table = TrainTable(**{"batch_size": "auto", "gradient_checkpointing": "auto", **keys})  # type: ignore[arg-type]
    return Recipe(ModelTable("x"), DataTable("x", max_seq_len=256), train=table)


@pytest.mark.parametrize(
    ("allowed", "is_gpu", "size", "is_checkpointed"),
    [
        (10_000, True, 16, False),
        (10_000, False, 4, False),
        (400 + 8 * 256, True, 8, False),
        (400 + 256, True, 1, False),
        (400 + 128, True, 2, True),
        (1, True, 1, True),
    ],
)
def test_auto_is_the_fastest_that_fits_with_as_many_sequences_a_step(
    allowed: int, is_gpu: bool, size: int, is_checkpointed: bool
) -> None:
    table = settle(auto(), allowed, peak, is_gpu=is_gpu).train
    assert (table.batch_size, table.gradient_checkpointing) == (size, is_checkpointed)
    assert size * table.gradient_accumulation_steps == 16


def test_what_the_recipe_fixes_stays_beside_an_auto() -> None:
    fixed = settle(auto(batch_size=2), 400 + 128, peak, is_gpu=True).train
    assert (fixed.batch_size, fixed.gradient_accumulation_steps, fixed.gradient_checkpointing) == (2, 4, True)
    plain = settle(auto(gradient_checkpointing=False), 400 + 3 * 256, peak, is_gpu=True).train
    assert (plain.batch_size, plain.gradient_accumulation_steps, plain.gradient_checkpointing) == (2, 8, False)
    assert settle(auto(offload_activations=True), 10_000, peak, is_gpu=True).train.gradient_checkpointing is True
    assert settle(RECIPE, 1, peak, is_gpu=True) == RECIPE
