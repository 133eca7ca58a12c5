"""bundle/export.py: a bundle takes its place only if it holds."""

import dataclasses
import json
import os

import pytest

from edgetune.bundle import classification, generation
from edgetune.bundle.export import export
from edgetune.bundle.generation import prompts_of
from edgetune.data.formats import Example, Message
from edgetune.errors import CheckError, ModelError, RunError
from edgetune.model.classifier import save_head
from edgetune.quantize.precisions import PRECISIONS
from edgetune.recipe import DataTable, parse_recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import check_hashes, open_bundle
from edgetune.runtime.decoder import Decoder


@pytest.fixture
def run(tiny_base, tiny_rows, a_recipe, tmp_path):
    """(recipe, run folder) with a merged model in it."""
    run_dir = RunDir(tmp_path / "run").create()
    run_dir.merged.symlink_to(tiny_base, target_is_directory=True)
    data = DataTable(train=str(tiny_rows), eval_fraction=0.3)
    return dataclasses.replace(a_recipe(repair_steps=4), data=data), run_dir


def test_the_bundle_opens_answers_and_carries_its_proof(run):
    recipe, run_dir = run
    events = []
    result = export(recipe, run_dir, progress=events.append)
    bundle = open_bundle(run_dir.bundle)
    check_hashes(bundle)
    assert bundle.verified["passed"] is True
    assert bundle.verified == {**result.verification.to_json(), "gain_kept": None}
    assert bundle.grid is not None
    assert result.size_bytes == bundle.size_bytes == sum(f.stat().st_size for f in files_of(run_dir.bundle))
    assert result.peak_bytes > 0
    assert {"base", "merged_sha256", "recipe_sha256", "packages"} <= set(bundle.provenance)
    told = [event["message"].split()[0] for event in events if event["stage"] == "export"]
    assert told == ["putting", "building", "verifying"]
    first, *steps = [event for event in events if event["stage"] == "repair"]
    assert first["message"] == f"repairing in {recipe.export.repair_steps} steps"
    repaired = [event["step"] for event in steps]
    assert repaired == list(range(1, recipe.export.repair_steps + 1))
    assert Decoder(bundle).generate("turn on the lamp", max_new_tokens=4).token_ids


def test_plain_onnxruntime_genai_opens_the_folder_with_threads_counted_where_it_is_loaded(run):
    recipe, run_dir = run
    export(recipe, run_dir)
    options = json.loads((run_dir.bundle / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options["intra_op_num_threads"] == 0
    assert options["session.intra_op.allow_spinning"] == "1"
    assert options["session.intra_op.spin_duration_us"] == "20"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    model = og.Model(str(run_dir.bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=8)
    generator = og.Generator(model, params)
    generator.append_tokens([5, 6, 7])
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 4


def test_two_exports_give_the_same_bytes(run, tmp_path):
    recipe, run_dir = run
    first, second = export(recipe, run_dir), export(recipe, run_dir, out=tmp_path / "again")
    names = ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"]
    assert [first.bundle.files[name] for name in names] == [second.bundle.files[name] for name in names]


def test_a_bundle_that_fails_is_left_aside_and_the_old_one_stays(run, monkeypatch):
    recipe, run_dir = run
    old = export(recipe, run_dir).bundle
    monkeypatch.setitem(PRECISIONS, "int8", dataclasses.replace(PRECISIONS["int8"], logits_limit=-1.0))
    recipe = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, precision="int8"))
    with pytest.raises(CheckError, match=r"logits against torch") as caught:
        export(recipe, run_dir, force=True)
    assert caught.value.exit_code == 5
    assert open_bundle(run_dir.bundle).files == old.files
    failed = open_bundle(run_dir.path / "bundle.failed")
    assert failed.verified["passed"] is False
    assert failed.precision == "int8"
    left = {item.name for item in run_dir.path.iterdir()} - {"cache"}
    assert left == {"bundle", "bundle.failed", "merged"}


def test_a_classifier_whose_answers_turn_unknown_on_the_grid_is_refused(
    a_classifier, encoder_tokenizer, texts, flipping, tmp_path, monkeypatch
):
    classifier, tokenizer, merged = a_classifier("bert"), encoder_tokenizer("bert"), tmp_path / "merged"
    classifier.encoder.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    save_head(classifier, merged)
    asked = texts * (classification.MOST_TEXTS // len(texts))  # as many as are verified on, so that each is drawn
    rows = [{"text": text, "label": f"label {number % 5}"} for number, text in enumerate(asked)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        f'[model]\nbase = "x"\ntask = "classification"\n[data]\ntrain = {json.dumps(str(tmp_path / "rows.jsonl"))}\n'
        '[export]\nprecision = "int8"\n',
        source="recipe.toml",
    )
    monkeypatch.setattr(
        classification, "calibrated", lambda bundle, _: flipping(bundle, classifier, tokenizer, texts)[0]
    )
    monkeypatch.setattr("edgetune.verify.classification.CHANGED_SHARE", 1 / len(asked))  # one text is there five times
    with pytest.raises(CheckError, match="changed answers") as caught:
        classification.export(merged, tmp_path / "bundle", recipe, cache=tmp_path / "cache")
    assert "rounded activations" not in caught.value.message
    assert not (tmp_path / "bundle").exists()
    failed = open_bundle(tmp_path / "bundle.failed")
    assert failed.verified["passed"] is False
    assert failed.classifier_format.threshold


def test_a_bundle_is_not_replaced_without_force(run):
    recipe, run_dir = run
    run_dir.bundle.mkdir()
    with pytest.raises(RunError, match="--force"):
        export(recipe, run_dir)


def test_without_a_merged_model_the_cure_is_named(a_recipe, tmp_path):
    with pytest.raises(RunError, match="edgetune merge"):
        export(a_recipe(), RunDir(tmp_path))


def test_an_unknown_architecture_stops_the_stage_before_the_data_is_read(a_recipe, tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.merged.mkdir()
    (run_dir.merged / "config.json").write_text('{"architectures": ["FooForCausalLM"]}')
    with pytest.raises(ModelError, match="FooForCausalLM"):
        export(a_recipe(), run_dir)


def test_an_interrupted_export_leaves_nothing_behind(run, monkeypatch):
    recipe, run_dir = run

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(recipe, run_dir)
    assert {item.name for item in run_dir.path.iterdir()} <= {"merged", "cache"}


def test_prompts_end_where_the_answer_starts():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    tools = '[{"type": "function", "function": {"name": "lamp"}}]'
    examples = [Example(turns, None, "a:1"), Example((), "plain", "a:2"), Example((), "", "a:3")]
    asked = [{"role": m.role, "content": m.content} for m in turns[:3]]
    assert prompts_of([*examples, Example(turns, None, "a:4", tools_json=tools)]) == [
        asked,
        "plain",
        {"messages": asked, "tools": json.loads(tools)},
    ]


def files_of(folder):
    return [item for item in folder.rglob("*") if item.is_file() and item.name != "edgetune.json"]


def test_a_folder_in_the_place_of_a_failed_bundle_is_left_alone_unless_it_is_one(run):
    recipe, run_dir = run
    theirs = run_dir.bundle.with_name("bundle.failed")
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"bundle.failed: is no bundle that failed"):
        export(recipe, run_dir)
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_a_bundle_never_takes_the_place_of_the_data_it_is_verified_on(run, tiny_rows):
    recipe, run_dir = run
    before = tiny_rows.read_bytes()
    with pytest.raises(RunError, match="which is read"):
        export(recipe, run_dir, out=tiny_rows, force=True)
    assert tiny_rows.read_bytes() == before
