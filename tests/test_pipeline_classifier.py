"""A classifier through all stages: recipe and labelled rows in, a verified, calibrated bundle out."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from edgetune.bundle.classification import as_exported
from edgetune.bundle.export import export, export_merged
from edgetune.bundle.merge_base import choose_merge_base
from edgetune.cli.verify import survival_lines
from edgetune.errors import RecipeError
from edgetune.evaluate.by_path import evaluate_path
from edgetune.export.read_graph import GraphFile, same_bytes
from edgetune.lora.merge import merge
from edgetune.lora.read import read_adapter
from edgetune.model.base import base_folder
from edgetune.pipeline import run
from edgetune.plan import plan
from edgetune.quantize.grid import dequantize
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.classifier import Classifier
from edgetune.train.loop import train

LABELS = ("on", "off", "dim")


@pytest.fixture(scope="module")
def finished(tiny_encoder, tmp_path_factory):
    """A run with rows out of scope, so that the bundle learns to say "unknown"."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = [{"text": f"turn {name} the lamp in room {n}", "label": name} for n in range(60) for name in LABELS]
    rows += [{"text": f"set the garage to {n} degrees", "label": "other"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = [row | {"text": row["text"].replace("the lamp", "the hall lamp")} for row in rows[::5]]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    recipe = parse_recipe(
        f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\ncompute_dtype = "float32"\n'
        f"[data]\ntrain = {json.dumps(str(folder / 'rows.jsonl'))}\ntest = {json.dumps(str(folder / 'test.jsonl'))}\n"
        'eval_fraction = 0.2\n[classify]\nout_of_scope_label = "other"\nfalse_accept_rate = 0.05\n'
        "[lora]\nr = 4\nalpha = 8\n[train]\nepochs = 5\nbatch_size = 8\n",
        source="recipe.toml",
    )
    run_dir = RunDir(folder / "run")
    return recipe, run_dir, run(recipe, run_dir)


def test_the_table_has_the_adapter_the_merged_model_and_the_bundle(finished):
    _, _, result = finished
    assert [row["name"] for row in result.summary["table"]] == ["fine-tuned (4-bit + adapter)", "merged", "int4 bundle"]
    assert all(row["score"] > 0.9 for row in result.summary["table"])
    assert "accuracy" in result.table
    assert "one text" in result.table


def test_ledger_and_verdict_tell_how_far_the_labels_are_from_the_fine_tune_s(finished):
    _, run_dir, result = finished
    steps = {step["stage"]: step for step in json.loads((run_dir.results / "ledger.json").read_text())["stages"]}
    assert steps["tuned"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < steps["bundle"]["kl"] < 0.1
    assert steps["bundle"]["same_next_token"] == pytest.approx(steps["bundle"]["same_answers"], abs=0.05)
    close = result.summary["survival"]["closeness"]
    assert (close["kl"], close["unit"]) == (steps["bundle"]["kl"], "label")
    assert close["changed_rows"] == pytest.approx(1.0 - steps["bundle"]["same_answers"])
    assert "nats a label from the fine-tune, at most 0.1 allowed" in result.summary["survival"]["verdict"]


def test_what_became_of_the_fine_tune_in_each_matrix_is_told(finished):
    recipe, run_dir, _ = finished
    layers = json.loads((run_dir.results / "survival.json").read_text())["layers"]
    modules = {name.removesuffix(".weight") for name in read_adapter(run_dir.adapter, base_folder(recipe.model)).pairs}
    assert {layer["name"] for layer in layers} == modules
    assert len(layers) == len(modules) > 4
    assert all(layer["codes_changed"] > 0 for layer in layers)
    assert all(0.1 < layer["correlation"] <= 1 for layer in layers)
    told = survival_lines(json.loads((run_dir.results / "survival.json").read_text()))
    assert f"{len(layers)} matrices changed" in told[1]


def test_the_ledger_has_what_each_step_rejects(finished):
    _, run_dir, result = finished
    steps = {step["stage"]: step for step in json.loads((run_dir.results / "ledger.json").read_text())["stages"]}
    rejection = result.summary["classification"]["rejection"]
    for key in ("in_scope_accuracy", "out_of_scope_recall"):
        assert steps["bundle"][key] == rejection[key]
        assert 0.5 < steps["tuned"][key] <= 1
    assert "out of scope, found" in result.ledger


def test_the_bundle_is_verified_calibrated_and_answers(finished):
    _, run_dir, result = finished
    bundle = open_bundle(run_dir.bundle)
    assert bundle.verified["passed"]
    format_ = bundle.classifier_format
    assert format_.labels == ("dim", "off", "on", "other")
    assert format_.temperature == result.summary["classification"]["temperature"]
    on, other = Classifier(bundle).classify(["turn on the lamp in room 7", "set the garage to 21 degrees"])
    assert (on.label, on.is_unknown) == ("on", False)
    assert (other.label, other.is_unknown) == (None, True)
    assert result.summary["classification"]["rejection"]["out_of_scope_recall"] > 0.8


def test_a_confusion_picture_and_answers_are_kept(finished):
    _, run_dir, _ = finished
    assert (run_dir.results / "confusion.png").read_bytes().startswith(b"\x89PNG")
    answers = [json.loads(line) for line in (run_dir.results / "bundle-answers.jsonl").read_text().splitlines()]
    assert {"text", "labels", "answer", "probability", "is_unknown", "correct", "place"} == set(answers[0])


def test_a_finished_run_is_up_to_date(finished):
    recipe, run_dir, result = finished
    said = []
    again = run(recipe, run_dir, progress=said.append)
    assert again.summary["table"] == result.summary["table"]
    assert sum("up to date" in str(event.get("message")) for event in said) >= 5


def test_the_bundle_is_scored_alone_on_other_rows(finished, tmp_path):
    recipe, run_dir, _ = finished
    copy = tmp_path / "shipped"
    run_dir.bundle.rename(copy)
    try:
        found = evaluate_path(str(copy), overrides=[f"data.test={json.dumps(recipe.data.test)}"], out=tmp_path / "out")
    finally:
        copy.rename(run_dir.bundle)
    assert found.summary["table"][0]["score"] > 0.9
    assert found.summary["rows"] == 48


def test_the_base_to_merge_on_is_measured_for_a_classifier_too(finished, tiny_encoder):
    recipe, run_dir, _ = finished
    exact = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, precision="fp32"))
    rounded, plain = (choose_merge_base(asked, run_dir, tiny_encoder).losses for asked in (recipe, exact))
    eval_loss = json.loads((run_dir.results / "train.json").read_text())["eval_loss"]
    assert plain["trained"] == pytest.approx(eval_loss, rel=2e-3)
    assert rounded["trained"] != plain["trained"]


@pytest.mark.parametrize("target", [pytest.param("labels", marks=pytest.mark.slow), "both"])
def test_scales_of_a_classifier_are_repaired_and_shipped_as_they_were_trained(finished, tmp_path, monkeypatch, target):
    recipe, run_dir, _ = finished
    monkeypatch.setattr("edgetune.quantize.repair.LEARNING_RATE", 1e-2)  # so that few steps are seen
    monkeypatch.setattr("edgetune.quantize.repair_classifier.LabelTruth.divergence", lambda *_: 0.0)
    table = dataclasses.replace(recipe.export, method="rtn", block_size=64, repair_steps=12, repair_on=target)
    asked = dataclasses.replace(recipe, export=table)
    made = export(asked, run_dir, out=tmp_path / "repaired")
    assert made.verification.passed
    repair = made.bundle.provenance["repair"]
    assert repair["best_step"] > 0
    assert repair["loss_after"] < repair["loss_before"]
    plain = dataclasses.replace(asked, export=dataclasses.replace(table, repair_steps=0))
    shipped, rounded = (
        matrices_of(bundle) for bundle in (made.bundle, export(plain, run_dir, out=tmp_path / "plain").bundle)
    )
    trained = as_exported(run_dir.merged, asked, cache=run_dir.cache)
    for name, matrix in shipped.items():
        assert dequantize(matrix).equal(trained.get_submodule(name).weight)
        assert matrix.packed.equal(rounded[name].packed)
    assert sum(not same_bytes(matrix, rounded[name]) for name, matrix in shipped.items()) >= len(shipped) - 1


def matrices_of(bundle):
    """What a classifier's graph holds on the grid, by module; the tiny encoder's sizes are multiples of the block."""
    graph = GraphFile(bundle.path / "model.onnx")
    found = {}
    for _, inputs, attributes in graph.grid_nodes():
        name = inputs[0].removeprefix("classifier.").removesuffix(".packed")
        columns = 128 if name.endswith("output.dense") and "attention" not in name else 64
        found[name] = graph.read_matrix(inputs, attributes, columns=columns)
    return found


def test_rows_with_other_labels_repair_nothing(finished, tmp_path):
    _, run_dir, _ = finished
    rows = [{"text": f"a {n} {label}", "label": label} for n in range(20) for label in ("x", "other")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError, match="other labels than the classifier"):
        export_merged(run_dir.merged, tmp_path / "bundle", str(tmp_path / "rows.jsonl"), ["export.repair_steps=2"])
    assert not (tmp_path / "bundle").exists()


def test_a_merged_folder_outside_any_run_is_exported_as_its_head_was_trained(finished, tmp_path):
    recipe, run_dir, _ = finished
    made = export_merged(run_dir.merged, tmp_path / "bundle", recipe.data.train).bundle
    assert made.verified["passed"]
    assert made.classifier_format.out_of_scope_label == "other"
    assert made.classifier_format.labels == open_bundle(run_dir.bundle).classifier_format.labels


PLACES = (
    "turn set play open lock what stop dim start find",
    "the a my all some off on up down please",
    "kitchen bedroom garage door lamp light music heating temperature weather",
    "hall now again later today tomorrow tonight morning evening soon",
)


@pytest.mark.slow
def test_ten_thousand_labels_are_trained_exported_and_told_apart(tiny_encoder, tmp_path):
    """As many wishes as ten words in each of four places make: a head that starts at their means tells them apart."""
    wishes = [" ".join(words) for words in itertools.product(*map(str.split, PLACES))]
    rows = [{"text": wish, "label": wish.title()} for wish in wishes]
    for name, kept in (("train", rows), ("eval", rows[::50])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    recipe = parse_recipe(
        f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\ncompute_dtype = "float32"\n'
        f'[data]\ntrain = "{tmp_path}/train.jsonl"\neval = "{tmp_path}/eval.jsonl"\n[lora]\nr = 4\n'
        '[train]\nmax_steps = 3\neval_steps = 3\nlearning_rate = 1e-4\n[export]\nprecision = "int8"\n',
        source="recipe.toml",
    )
    planned, run_dir = plan(recipe).estimate, RunDir(tmp_path / "run")
    assert planned.parts["head"] == 10_000 * 64 * 4
    train(recipe, run_dir)
    merge(run_dir.adapter, tiny_encoder, run_dir.merged)
    assert export(recipe, run_dir).verification.passed
    classifier = Classifier(run_dir.bundle)
    assert len(classifier.format.labels) == 10_000
    asked = rows[::500]
    answers = classifier.classify([row["text"] for row in asked], top_k=5)
    assert all(len(answer.top) == 5 and 0 < answer.probability <= 1 for answer in answers)
    assert sum(answer.label == row["label"] for answer, row in zip(answers, asked, strict=True)) >= 10


WISHES = {"light": "turn on the lamp", "music": "play some jazz", "door": "lock the front door"}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_texts_with_several_labels_go_the_whole_way(tiny_encoder, tmp_path, head):
    sets = [(), ("light",), ("music",), ("door",), ("light", "music"), ("music", "door"), ("light", "door")]
    rows = [
        {"text": f"hey {n} " + " and ".join(WISHES[name] for name in names), "label": list(names)}
        for n in range(40)
        for names in sets
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\ncompute_dtype = "float32"\n'
        f'[data]\ntrain = "{tmp_path}/rows.jsonl"\neval_fraction = 0.2\n'
        f'[classify]\nmulti_label = true\nhead = "{head}"\n[lora]\nr = 4\nalpha = 8\n'
        "[train]\nepochs = 10\nbatch_size = 8\n",
        source="recipe.toml",
    )
    run_dir = RunDir(tmp_path / "run")
    result = run(recipe, run_dir)
    assert result.summary["table"][-1]["name"] == "int4 bundle"
    assert result.summary["table"][-1]["score"] > 0.9
    assert result.summary["classification"]["micro_f1"] > 0.9
    both, none = Classifier(run_dir.bundle).classify(["hey 3 play some jazz and lock the front door", "hey 5"])
    assert set(both.labels) == {"music", "door"}
    assert (none.labels, none.is_unknown) == ((), False)
    copy = run_dir.bundle.rename(tmp_path / "shipped")
    found = evaluate_path(str(copy), overrides=[f'data.test="{tmp_path}/rows.jsonl"'], out=tmp_path / "out")
    assert found.summary["table"][0]["score"] > 0.9


@pytest.mark.slow
def test_rows_out_of_scope_that_training_never_saw_set_the_threshold(tiny_encoder, tmp_path):
    rows = [{"text": f"turn {name} the lamp in room {n}", "label": name} for n in range(60) for name in LABELS]
    others = [{"text": f"set the garage to {n} degrees", "label": "other"} for n in range(30)]
    for name, kept in (("train", rows), ("eval", rows[::5] + others), ("test", rows[1::5] + others)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    recipe = parse_recipe(
        f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\ncompute_dtype = "float32"\n'
        + "[data]\n"
        + "".join(f'{name} = "{tmp_path}/{name}.jsonl"\n' for name in ("train", "eval", "test"))
        + '[classify]\nout_of_scope_label = "other"\n[lora]\nr = 4\nalpha = 8\n[train]\nepochs = 5\nbatch_size = 8\n',
        source="recipe.toml",
    )
    run_dir = RunDir(tmp_path / "run")
    result = run(recipe, run_dir)
    format_ = open_bundle(run_dir.bundle).classifier_format
    assert format_.labels == ("dim", "off", "on")
    assert 0 < format_.threshold < 1
    rejection = result.summary["classification"]["rejection"]
    assert rejection["threshold"] == format_.threshold
    assert rejection["in_scope_accuracy"] > 0.8
    assert rejection["out_of_scope_recall"] > 0.8
    assert rejection["auroc"] > 0.9
    copy = run_dir.bundle.rename(tmp_path / "shipped")
    settings = [f'data.test="{tmp_path}/test.jsonl"', "classify.out_of_scope_label=other"]
    found = evaluate_path(str(copy), overrides=settings, out=tmp_path / "out")
    assert found.summary["results"][0]["score"]["rejection"] == rejection
