"""train/classification.py: batches of like length, the loss over labels, and a whole training of a tiny classifier."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from safetensors.torch import load_file

from edgetune.data.tokens import LabelledTokens
from edgetune.errors import ModelError
from edgetune.lora.merge import merge
from edgetune.model.base import load_merged, load_tokenizer
from edgetune.model.classifier import Classifier, load_head, read_spec
from edgetune.plan import plan
from edgetune.recipe import ClassifyTable, DataTable, ModelTable, Recipe, parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.classification import Classification, bucketed
from edgetune.train.curve import draw_curve
from edgetune.train.loop import train
from edgetune.train.setup import set_up

COLOURS = ("red", "green", "blue")


@pytest.fixture
def recipe_for(tiny_encoder, tmp_path):
    def make(*overrides):
        path = tmp_path / "rows.jsonl"
        rows = [
            {"text": f"{colour} light {n} in the kitchen", "label": colour} for n in range(40) for colour in COLOURS
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = (
            f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\ncompute_dtype = "float32"\n'
            f"[data]\ntrain = {json.dumps(str(path))}\neval_fraction = 0.2\n[lora]\nr = 4\nalpha = 8\n"
            "[train]\nepochs = 6\nbatch_size = 8\n"
        )
        return parse_recipe(text, source="recipe.toml", overrides=overrides)

    return make


def task_with(targets, *, labels=3, **classify):
    rows = LabelledTokens(SimpleNamespace(), np.array(targets), labels)
    recipe = SimpleNamespace(classify=ClassifyTable(**classify))
    return Classification(recipe, SimpleNamespace(train=rows), 0)  # type: ignore[arg-type]


def loss_of(task, logits, targets):
    batch = SimpleNamespace(input_ids=None, attention_mask=None, targets=targets, trained=len(logits))
    total, count = task.loss_sum(lambda *_: logits, batch)
    return float(total) / count


def test_batches_hold_every_row_once_and_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    rows = bucketed(lengths, batch_size=8, generator=np.random.default_rng(1))
    batches = [rows[at : at + 8] for at in range(0, 1000, 8)]
    assert sorted(rows) == list(range(1000))
    padded = sum(len(batch) * max(lengths[batch]) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    again = bucketed(lengths, batch_size=8, generator=np.random.default_rng(1))
    assert rows == again
    assert rows != bucketed(lengths, batch_size=8, generator=np.random.default_rng(2))


def test_a_batch_that_is_not_full_comes_last_so_that_the_others_begin_where_they_should():
    lengths = np.arange(8 * 60 + 3)
    for seed in range(5):
        rows = bucketed(lengths, batch_size=8, generator=np.random.default_rng(seed))
        assert sorted(rows) == list(range(len(lengths)))
        for at in range(0, len(rows), 8):
            assert rows[at : at + 8] == sorted(rows[at : at + 8])


def test_the_loss_is_smoothed_cross_entropy():
    logits, targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0])
    task = task_with([0, 1, 2], label_smoothing=0.1)
    assert loss_of(task, logits, targets) == pytest.approx(float(F.cross_entropy(logits, targets, label_smoothing=0.1)))


def test_balanced_weights_make_each_label_count_the_same():
    logits = torch.zeros(4, 2)
    targets = torch.tensor([0, 0, 0, 1])
    task = task_with([0, 0, 0, 1], labels=2, label_smoothing=0.0, class_weights="balanced")
    per_row = [loss_of(task, logits[:1], targets[row : row + 1]) for row in range(4)]
    assert sum(per_row[:3]) == pytest.approx(per_row[3])
    assert sum(per_row) / 4 == pytest.approx(np.log(2))


@pytest.mark.parametrize("multi_label", [False, True])
def test_weights_of_skewed_data_do_not_make_a_rare_label_likely_everywhere(multi_label):
    """The best answer to a row of the common label keeps the smoothing's small share for the rare one."""
    rows = [0] * 100 + [1]
    sets = np.packbits(np.eye(2, dtype=bool)[rows], axis=1) if multi_label else rows
    task = task_with(sets, labels=2, multi_label=multi_label, label_smoothing=0.1, class_weights="balanced")
    best = torch.tensor([[0.95, 0.05]])
    logits = (best.logit() if multi_label else best.log()).requires_grad_()
    batch = SimpleNamespace(input_ids=None, attention_mask=None, targets=task.prepared.train.target([0]), trained=1)
    (gradient,) = torch.autograd.grad(task.loss_sum(lambda *_: logits, batch)[0], logits)
    assert gradient.abs().max() < 1e-6


def test_the_loss_of_sets_of_labels_is_binary():
    sets = np.array([[1, 0, 1], [0, 0, 0]], bool)
    task = task_with(np.packbits(sets, axis=1), multi_label=True, label_smoothing=0.0)
    logits, targets = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), task.prepared.train.target([0, 1])
    assert targets.tolist() == sets.astype(float).tolist()
    assert loss_of(task, logits, targets) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, targets)), rel=1e-6
    )


def parts_of(recipe, tmp_path):
    return set_up(recipe, RunDir(tmp_path / "run").create(), "inputs", lambda _: None)


def test_a_cosine_head_starts_at_the_means_of_the_training_texts(recipe_for, tmp_path):
    parts = parts_of(recipe_for("lora.dropout=0.5"), tmp_path)
    rows, model = parts.task.prepared.train, parts.model.eval()
    batch = parts.task.collate(range(len(rows)))
    with torch.no_grad():
        directions = F.normalize(model.embed(batch.input_ids, batch.attention_mask), dim=-1)
    means = F.normalize(torch.stack([directions[batch.targets == label].mean(0) for label in range(3)]), dim=-1)
    assert torch.allclose(model.head.weight, means, atol=1e-4)  # sums in another order, batches padded otherwise


@pytest.mark.parametrize("setting", ["classify.head=linear", "classify.multi_label=true"])
def test_no_other_head_starts_there(recipe_for, tmp_path, setting):
    parts = parts_of(recipe_for(setting), tmp_path)
    assert parts.model.head.weight.norm(dim=1).max() < 0.9, "a draw, no directions of length 1"


@pytest.mark.parametrize(("rate", "expected"), [("auto", 2e-2), ("5e-4", 5e-4)])
def test_the_head_alone_learns_at_its_own_rate(recipe_for, tmp_path, rate, expected):
    recipe = recipe_for(f"classify.head_learning_rate={rate}", "train.learning_rate=2e-3", "classify.head=linear")
    parts = parts_of(recipe, tmp_path)
    heads = {id(parameter) for parameter in parts.model.head.parameters()}
    assert len(heads) == 2
    rates = {
        id(parameter): group["share"] * parts.learning_rate
        for group in parts.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(parts.trained)
    for parameter, found in rates.items():
        assert found == pytest.approx(expected if parameter in heads else 2e-3)


def test_the_head_s_rate_is_that_of_the_steps(recipe_for, tmp_path):
    """A head at a rate near zero stays where it began while the adapter moves."""
    settings = ("train.max_steps=2", "train.learning_rate=1e-2", "train.warmup_ratio=0")
    start = parts_of(recipe_for(*settings), tmp_path).model.head.weight.detach().clone()
    moved = {}
    for rate in ("1e-9", "1e-2"):
        run_dir = RunDir(tmp_path / rate)
        train(recipe_for(*settings, f"classify.head_learning_rate={rate}"), run_dir)
        moved[rate] = (load_file(run_dir.adapter / "head.safetensors")["weight"] - start).abs().max()
        adapter = load_file(run_dir.adapter / "adapter_model.safetensors")
        assert max(tensor.abs().max() for name, tensor in adapter.items() if "lora_B" in name) > 1e-3
    assert moved["1e-9"] < 1e-6 < 1e-3 < moved["1e-2"]


@pytest.mark.usefixtures("drawn_curves")
def test_the_picture_of_a_classifier_s_loss_speaks_of_texts(recipe_for, tmp_path, monkeypatch):
    told, plain = [], Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **values: told.append(values) or plain(axes, **values))
    run_dir = RunDir(tmp_path / "run")
    train(recipe_for("train.max_steps=2"), run_dir)
    assert [(values["xlabel"], values["ylabel"]) for values in told] == [("optimizer step", "loss (nats per text)")]
    assert run_dir.loss_curve.read_bytes().startswith(b"\x89PNG")
    draw_curve(run_dir.events, tmp_path / "decoder.png", title="x", per=Recipe(ModelTable("b"), DataTable("t")).learned)
    assert told[-1]["ylabel"] == "loss (nats per trained token)"


def test_a_linear_head_learns_sets_of_labels(recipe_for, tmp_path):
    recipe = recipe_for("classify.head=linear", "classify.multi_label=true", "train.max_steps=40")
    result = train(recipe, RunDir(tmp_path / "run"))
    assert result.eval_loss < 0.75 * math.log(2), "the loss of one who says one half to everything"
    spec = read_spec(tmp_path / "run" / "adapter")
    assert (spec.head, spec.multi_label) == ("linear", True)
    assert set(load_file(tmp_path / "run" / "adapter" / "head.safetensors")) == {"weight", "bias"}


def test_the_plan_counts_the_head_of_all_labels(recipe_for):
    planned = plan(recipe_for()).estimate
    assert planned.parts["head"] == 3 * 64 * 4


@pytest.fixture
def trained(recipe_for, tmp_path):
    recipe, run_dir = recipe_for(), RunDir(tmp_path / "run")
    return recipe, run_dir, train(recipe, run_dir)


def right_answers(classifier: Classifier, recipe: Recipe, tokenizer) -> float:
    rows = [json.loads(line) for line in Path(recipe.data.train).read_text(encoding="utf-8").splitlines()]
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = classifier(batch["input_ids"], batch["attention_mask"]).argmax(1).tolist()
    return float(np.mean([classifier.spec.labels[n] == row["label"] for n, row in zip(found, rows, strict=True)]))


def test_a_classifier_learns_in_4_bits_and_merges_with_its_head(trained, tiny_encoder, tmp_path):
    recipe, run_dir, result = trained
    assert result.eval_loss is not None
    assert {"adapter_model.safetensors", "head.safetensors", "classifier.json"} <= {
        path.name for path in run_dir.adapter.iterdir()
    }
    merge(run_dir.adapter, tiny_encoder, tmp_path / "merged")
    spec = read_spec(tmp_path / "merged")
    assert (spec.labels, spec.pooling, spec.max_length) == (("blue", "green", "red"), "mean", 64)
    classifier = Classifier(load_merged(tmp_path / "merged"), spec).eval()
    load_head(classifier, tmp_path / "merged")
    assert right_answers(classifier, recipe, load_tokenizer(tmp_path / "merged")) > 0.95


def test_the_adapter_of_a_classifier_loads_in_plain_peft(trained, tiny_encoder):
    from peft import PeftModel
    from transformers import AutoModel

    _, run_dir, _ = trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that PEFT still uses and transformers 5.24 renamed
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_encoder), str(run_dir.adapter))
    saved = load_file(run_dir.adapter / "adapter_model.safetensors")
    assert saved
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_the_pooler_is_trained_only_where_it_is_asked_for(recipe_for, tmp_path):
    for pooling, expected in (("cls", False), ("pooler", True)):
        run_dir = RunDir(tmp_path / pooling)
        train(recipe_for(f"classify.pooling={pooling}", "train.max_steps=2"), run_dir)
        names = load_file(run_dir.adapter / "adapter_model.safetensors")
        assert any("pooler" in name for name in names) == expected


def test_a_decoder_is_no_base_for_classification(recipe_for, tiny_base, tmp_path):
    with pytest.raises(ModelError, match=r"'llama' is not an encoder"):
        train(recipe_for(f"model.base={tiny_base}"), RunDir(tmp_path / "run"))
