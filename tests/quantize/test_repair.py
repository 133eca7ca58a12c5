"""Repair as a whole: it never makes a model worse, and what it trained is what is written and shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from edgetune.data.encode import NOT_TRAINED
from edgetune.data.prepare import prepare
from edgetune.errors import RecipeError, RunError
from edgetune.model.base import load_merged, load_tokenizer
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.grid import dequantize
from edgetune.quantize.hessian import Rows
from edgetune.quantize.matrices import round_all
from edgetune.quantize.repair import NEAR, Look, RepairData, best_of, eval_loss, load_for_loss, longer, repair
from edgetune.quantize.repairable import checkpoint_layers
from edgetune.quantize.repairable import repaired as take_out
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe, TrainTable
from edgetune.runtime.grid import BundleGrid
from edgetune.train.batches import collate_rows
from edgetune.train.loss import use_segments

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)


@pytest.fixture(autouse=True)
def long_steps(monkeypatch) -> None:
    """Few steps have to be seen."""
    monkeypatch.setattr("edgetune.quantize.repair.LEARNING_RATE", 1e-2)


@pytest.fixture
def recipe(tiny_base, tiny_rows) -> Recipe:
    return Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), max_seq_len=128, eval_fraction=0.2),
        train=TrainTable(batch_size=4, gradient_accumulation_steps=1),
        export=ExportTable(repair_steps=12),
    )


@pytest.fixture
def rows(recipe, tiny_base, tmp_path):
    tokenizer = load_tokenizer(tiny_base)
    return Rows(prepare(recipe, tokenizer, cache=tmp_path / "cache"), tokenizer.pad_token_id or 0)


def repaired(recipe: Recipe, tiny_base: Path, rows: Rows, **export: object):
    table = dataclasses.replace(recipe.export, **export)  # type: ignore[arg-type]
    recipe = dataclasses.replace(recipe, export=table)
    return repair(tiny_base, round_all(tiny_base, GRID), rows.prepared, recipe, pad_id=rows.pad_id)


@pytest.mark.usefixtures("labels_alone")
@pytest.mark.parametrize("target", ["labels", "both"])
def test_the_loss_falls_and_the_integers_stay(recipe, tiny_base, rows, target):
    done = repaired(recipe, tiny_base, rows, repair_on=target)
    before = round_all(tiny_base, GRID)
    assert all(done.matrices[name].packed.equal(before[name].packed) for name in before)
    assert done.loss_after < done.loss_before
    assert any(not done.matrices[name].scales.equal(before[name].scales) for name in before)


def test_a_repair_that_makes_it_worse_is_not_kept(recipe, tiny_base, rows, monkeypatch):
    losses = iter([5.0, 5.5, 6.0, 5.1, 7.0])
    monkeypatch.setattr("edgetune.quantize.repair._look", lambda step, *_: Look(step, next(losses), 0.1))
    done = repaired(recipe, tiny_base, rows)
    before = round_all(tiny_base, GRID)
    assert done.loss_before == 5.0
    assert (done.best_step, done.loss_after) == (0, done.loss_before)
    assert all(done.matrices[name].scales.equal(before[name].scales) for name in before)
    assert all(value.equal(read_tensor(find_tensors(tiny_base)[name])) for name, value in done.vectors.items())


def test_what_was_best_is_kept_though_training_goes_on(recipe, tiny_base, rows, monkeypatch):
    """Losses of 5, 4, 3, 6 and 7: scales, norms and biases are those of the third look, all of them."""
    losses, seen = iter([5.0, 4.0, 3.0, 6.0, 7.0]), []

    def look(step, model, _):
        matrices, vectors = take_out(model)
        seen.append(({name: value.scales for name, value in matrices.items()}, vectors))
        return Look(step, next(losses), 0.1)

    monkeypatch.setattr("edgetune.quantize.repair._look", look)
    done = repaired(recipe, tiny_base, rows)
    assert (done.loss_before, done.loss_after, done.best_step) == (5.0, 3.0, 6)
    (scales, vectors), (last_scales, last_vectors) = seen[2], seen[4]
    name, norm = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
    assert all(done.matrices[name].scales.equal(value) for name, value in scales.items())
    assert all(done.vectors[name].equal(value) for name, value in vectors.items())
    assert not last_scales[name].equal(scales[name])
    assert not last_vectors[norm].equal(vectors[norm])


def test_what_has_gone_further_from_the_merged_model_than_rounding_is_not_kept(recipe, tiny_base, rows, monkeypatch):
    """The least loss is the last look's, which is another model; the second of those that are no further is kept."""
    looks = iter([(5.0, 0.2), (4.5, 0.1), (4.0, 0.2), (4.2, 0.1), (2.0, 0.3)])
    monkeypatch.setattr("edgetune.quantize.repair._look", lambda step, *_: Look(step, *next(looks)))
    done = repaired(recipe, tiny_base, rows)
    assert (done.best_step, done.loss_after, done.kl_before, done.kl_after) == (6, 4.0, 0.2, 0.2)
    assert [(look.loss, look.kl) for look in done.curve][-1] == (2.0, 0.3)


def test_of_equal_looks_the_first_is_kept_and_of_near_ones_the_best():
    assert best_of([Look(0, 5.0, 0.2), Look(3, 5.0, 0.1)]).step == 0
    assert best_of([Look(0, 5.0, 0.001), Look(3, 4.0, NEAR), Look(6, 3.0, 2 * NEAR)]).step == 3


def test_a_fine_tune_that_scales_alone_still_improve_much_is_told_how_much_longer(recipe, tiny_base, rows, monkeypatch):
    """Of 32 train rows 4 a step: the best look, after 9 steps, is 36 rows on."""
    merged = repaired(recipe, tiny_base, rows, repair_steps=1).loss_merged
    for share, is_told in ((0.5, True), (0.81, False)):
        losses = iter([merged, merged, merged, share * merged, merged])
        monkeypatch.setattr("edgetune.quantize.repair._look", lambda step, *_, found=losses: Look(step, next(found), 0))
        done = repaired(recipe, tiny_base, rows)
        packed = len(RepairData(recipe, rows.prepared, rows.pad_id).epoch(0))
        assert done.epochs_more == (pytest.approx(36 / packed) if is_told else None)
    assert [longer(TrainTable(epochs=2.0), more) for more in (0.2, 1.2)] == ["train.epochs=3", "train.epochs=4"]
    assert longer(TrainTable(max_steps=40), 0.2) == "train.max_steps=80"


def test_checkpointed_layers_keep_their_inputs_alone_and_give_the_same_bytes(recipe, tiny_base, rows):
    """train.gradient_checkpointing holds for repair too."""
    lean = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, gradient_checkpointing=True))
    plain, checkpointed = (repaired(each, tiny_base, rows, repair_steps=3) for each in (recipe, lean))
    assert checkpointed.curve == plain.curve
    assert all(value.equal(plain.vectors[name]) for name, value in checkpointed.vectors.items())
    assert all(value.scales.equal(plain.matrices[name].scales) for name, value in checkpointed.matrices.items())
    kept = []
    for is_lean in (False, True):
        model = load_for_loss(tiny_base, round_all(tiny_base, GRID), rounds_inputs=True)
        if is_lean:
            checkpoint_layers(model)
        batch = collate_rows(rows.prepared.train, [[0, 1], [2]], pad_id=rows.pad_id)
        sizes: dict[int, int] = {}

        def see(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(see, lambda tensor: tensor):
            RepairData(recipe, rows.prepared, rows.pad_id).loss_sum(model, batch)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("target", ["labels", "teacher", "both"])
def test_the_loss_is_that_of_the_labels_of_the_teacher_or_their_mean(recipe, tiny_base, rows, target):
    """Against whole logits of both models, on rows of different lengths with prompts that are not trained."""
    model = load_for_loss(tiny_base, round_all(tiny_base, GRID), rounds_inputs=False)
    teacher = load_merged(tiny_base, dtype=torch.float32)
    use_segments(teacher)
    batch = collate_rows(rows.prepared.train, [[0, 1], [2]], pad_id=rows.pad_id)
    asked = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, repair_on=target))
    learned = RepairData(asked, rows.prepared, rows.pad_id, None if target == "labels" else teacher)
    found = float(learned.loss_sum(model, batch)[0].detach())
    labels = divergence = 0.0
    for index in (0, 1, 2):
        row = rows.prepared.train[index]
        wanted = torch.tensor(row.labels)[1:]
        trained = wanted != NOT_TRAINED
        mine, its = (own_logits(each, row.input_ids)[:-1][trained].log_softmax(-1) for each in (model, teacher))
        labels -= float(mine.gather(1, wanted[trained, None]).sum())
        divergence += float((its.exp() * (its - mine)).sum())
    assert divergence > 0.1
    expected = {"labels": labels, "teacher": divergence, "both": (labels + divergence) / 2}
    assert found == pytest.approx(expected[target], rel=1e-4)


def own_logits(model, ids) -> torch.Tensor:
    """(T, V) of one row, with the attention of transformers itself."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_the_same_seed_gives_the_same_repair(recipe, tiny_base, rows):
    first, second = (repaired(recipe, tiny_base, rows) for _ in range(2))
    assert first.curve == second.curve
    assert all(first.matrices[name].scales.equal(second.matrices[name].scales) for name in first.matrices)


def test_a_loss_that_is_no_number_is_one_line(recipe, tiny_base, rows, monkeypatch):
    plain = RepairData.loss_sum
    broken = lambda *args: (plain(*args)[0] * float("nan"), 1)  # noqa: E731
    monkeypatch.setattr(RepairData, "loss_sum", broken)
    with pytest.raises(RunError, match="repair, step 1: the loss is nan"):
        repaired(recipe, tiny_base, rows)


def test_what_was_trained_is_what_is_written(recipe, tiny_base, rows, tmp_path):
    folder = quantize_decoder(tiny_base, tmp_path / "grid", recipe, GRID, rows=rows)
    again = QuantizedFolder(tmp_path / "grid")
    assert folder.record["repair"]["loss_after"] <= folder.record["repair"]["loss_before"]
    model = load_for_loss(tiny_base, again, rounds_inputs=False, vectors=again.vectors)
    done = eval_loss(model, rows.prepared, recipe, rows.pad_id)
    rounding = load_for_loss(tiny_base, again, rounds_inputs=True, vectors=again.vectors)
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
    model = load_for_loss(tiny_base, folder, rounds_inputs=True, vectors=folder.vectors)
    loss = eval_loss(model, rows.prepared, recipe, rows.pad_id)
    changed = dataclasses.replace(recipe, export=dataclasses.replace(table, repair_steps=1))
    again = quantize_decoder(tiny_base, tmp_path / "repaired", changed, GRID, rows=rows)
    assert again.record["repair"]["loss_before"] == pytest.approx(loss, rel=1e-6)  # repair starts from the same model


@pytest.mark.usefixtures("labels_alone")
@pytest.mark.parametrize("symmetric", [False, True])
def test_two_bits_are_repaired_like_four(recipe, tiny_base, rows, symmetric):
    before = round_all(tiny_base, dataclasses.replace(GRID, bits=2, symmetric=symmetric))
    done = repair(tiny_base, before, rows.prepared, recipe, pad_id=rows.pad_id)
    assert done.loss_after < done.loss_before
    assert all(done.matrices[name].packed.equal(before[name].packed) for name in before)
