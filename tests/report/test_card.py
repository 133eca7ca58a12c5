"""Model cards: edgetune/report/card.py and card_facts.py."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from huggingface_hub import ModelCard
from made_run import make_run

from edgetune.files import write_json
from edgetune.hashes import CARD, hash_tree
from edgetune.report.card import MARK, card_text, write_bundle_card, write_cards
from edgetune.report.card_facts import PATH_VALUE, adapter_subject, bundle_subject, public
from edgetune.report.measure import disk_bytes
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import check_hashes, open_bundle, write_manifest


@pytest.fixture
def run_dir(tmp_path, tiny_bundle):
    """A finished run whose adapter and bundle are small and real enough to be told of."""
    run_dir = RunDir(make_run(tmp_path / "lamp", score=0.8))
    run_dir.adapter.mkdir()
    config = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "x"}
    write_json(run_dir.adapter / "adapter_config.json", config)
    write_json(run_dir.adapter / "edgetune.json", {"kind": "adapter", "base": "edgetune:nano", "quantization": "nf4"})
    (run_dir.adapter / "adapter_model.safetensors").write_bytes(b"1234")
    shutil.copytree(tiny_bundle, run_dir.bundle)
    bundle = dataclasses.replace(open_bundle(run_dir.bundle), name="lamp", verified={"passed": True, "gain_kept": {}})
    write_manifest(bundle)
    stages = {name: {"inputs": "", "output": ""} for name in ("export", "evaluate-tuned", "evaluate-bundle")}
    run_dir.update({"stages": stages})
    return run_dir


def change_recipe(run_dir, old, new):
    text = run_dir.recipe.read_text(encoding="utf-8")
    assert old in text
    run_dir.recipe.write_text(text.replace(old, new), encoding="utf-8")


def test_the_hub_reads_the_header(run_dir):
    change_recipe(run_dir, '"edgetune:nano"', '"org/base-model"')
    change_recipe(run_dir, '"rows.jsonl"', '"org/rows"')
    assert write_cards(run_dir) == [run_dir.adapter / CARD, run_dir.bundle / CARD]
    adapter, bundle = (ModelCard.load(folder / CARD).data for folder in (run_dir.adapter, run_dir.bundle))
    assert (adapter.base_model, adapter.base_model_relation) == ("org/base-model", "adapter")
    assert (bundle.base_model, bundle.base_model_relation) == ("org/base-model", "quantized")
    assert (adapter.library_name, bundle.library_name) == ("peft", "onnx")
    assert adapter.datasets == bundle.datasets == ["org/rows"]
    assert adapter.pipeline_tag == "text-generation"
    assert {"edgetune", "onnx", "fp32"} <= set(bundle.tags)
    assert adapter.license is None
    for data, score in ((adapter, 0.8), (bundle, 0.78)):
        exact, loss = data.eval_results
        assert (exact.metric_type, exact.metric_name, exact.metric_value) == ("exact_match", "same JSON", score)
        assert loss.metric_type == "loss"
        assert exact.dataset_name == "rows.jsonl"


def test_the_text_has_scores_sizes_recipe_limits_and_origin(run_dir):
    write_cards(run_dir)
    text = (run_dir.bundle / CARD).read_text(encoding="utf-8")
    assert "| fp32 bundle | 78.0% (73.0% to 82.0%) |" in text
    assert "40 rows of rows.jsonl" in text
    assert "| model.onnx" in text
    assert "At most 512 tokens" in text
    assert 'base = "edgetune:nano"' in text
    assert "license: apache-2.0" in text
    adapter = (run_dir.adapter / CARD).read_text(encoding="utf-8")
    assert "Rank 16, alpha 32, on `q_proj`, `v_proj`" in adapter
    assert "- seed: 0" in adapter
    assert "bundle" not in adapter.partition("## Scores")[2].partition("## Sizes")[0]


def test_a_card_is_no_part_of_what_it_tells_of(run_dir):
    adapter, size = hash_tree(run_dir.adapter), disk_bytes(run_dir.bundle)
    files = open_bundle(run_dir.bundle).files
    write_cards(run_dir)
    assert hash_tree(run_dir.adapter) == adapter
    assert disk_bytes(run_dir.bundle) == size
    check_hashes(open_bundle(run_dir.bundle))
    again = write_manifest(dataclasses.replace(open_bundle(run_dir.bundle), files={}))
    assert again.files == files


def test_the_same_run_gives_the_same_card(run_dir):
    write_cards(run_dir)
    text = (run_dir.bundle / CARD).read_bytes()
    write_cards(run_dir)
    assert (run_dir.bundle / CARD).read_bytes() == text


def test_a_card_of_the_users_own_stays(run_dir):
    (run_dir.adapter / CARD).write_text("# Mine\n")
    assert write_cards(run_dir) == [run_dir.bundle / CARD]
    assert (run_dir.adapter / CARD).read_text() == "# Mine\n"
    text = (run_dir.bundle / CARD).read_text(encoding="utf-8")
    (run_dir.bundle / CARD).write_text(text.replace(MARK, "changed"), encoding="utf-8")
    assert write_cards(run_dir) == []


def test_scores_of_another_bundle_are_not_told(run_dir):
    run_dir.forget("export")  # as a new export does
    text = card_text(bundle_subject(run_dir.bundle, run_dir))
    assert "Not measured yet" in text
    assert "model-index" not in text


def test_an_adapter_that_was_not_scored_says_so(run_dir):
    shutil.rmtree(run_dir.results)
    assert "Not measured yet" in card_text(adapter_subject(run_dir))


@pytest.mark.parametrize(("passed", "words"), [(False, "It failed EdgeTune's verification"), (None, "has not passed")])
def test_a_bundle_that_is_not_verified_says_so(run_dir, passed, words):
    verified = {} if passed is None else {"passed": passed}
    write_manifest(dataclasses.replace(open_bundle(run_dir.bundle), verified=verified))
    assert words in card_text(bundle_subject(run_dir.bundle, run_dir))


def test_no_path_of_the_machine_is_told(run_dir, tmp_path):
    base = tmp_path / "secret-place" / "my-base"
    base.mkdir(parents=True)
    (base / CARD).write_text('---\nlicense: "mit"\ntags: [x]\n---\n# Base\n')
    change_recipe(run_dir, '"edgetune:nano"', f'"{base.as_posix()}"')
    change_recipe(run_dir, '"rows.jsonl"', '"$HOME/secret-place/my-rows.jsonl"')
    (run_dir.results / "rows.json").write_text(json.dumps({"source": str(base.parent / "my-rows.jsonl")}))
    write_cards(run_dir)
    for folder in (run_dir.adapter, run_dir.bundle):
        text = (folder / CARD).read_text(encoding="utf-8")
        assert "secret-place" not in text
        assert "my-rows.jsonl" in text
        assert 'base = "my-base"' in text
        data = ModelCard(text).data
        assert data.license == "mit"
        assert data.base_model is None
        assert data.datasets is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/name", "org/name"),
        ("edgetune:home", "edgetune:home"),
        ("/a/b/c.jsonl", "c.jsonl"),
        ("../b/", "b"),
        ("C:\\x\\y", "y"),
    ],
)
def test_names_are_public_and_paths_are_not(name, shown):
    assert public(name) == shown


def test_paths_are_known_by_how_they_begin():
    text = 'a = "/x/y"\nb = "~/z"\nc = "$D/z"\nd = "org/name"\ne = "auto"\nf = "../q"\n'
    assert PATH_VALUE.findall(text) == ["/x/y", "~/z", "$D/z", "../q"]


def test_a_bundle_in_no_run_has_a_card_of_what_it_says_itself(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert write_bundle_card(tmp_path / "bundle", None) == tmp_path / "bundle" / CARD
    assert ModelCard.load(tmp_path / "bundle" / CARD).data.library_name == "onnx"


def test_a_classifiers_card_names_its_labels(word_bundle, tmp_path):
    shutil.copytree(word_bundle, tmp_path / "bundle")
    write_bundle_card(tmp_path / "bundle", None)
    card = ModelCard.load(tmp_path / "bundle" / CARD)
    assert card.data.pipeline_tag == "text-classification"
    assert "3 labels: card, money, weather." in card.text
    assert "edgetune classify" in card.text


def test_what_is_damaged_is_told_and_stops_nothing(run_dir):
    (run_dir.adapter / "adapter_config.json").write_text("{")
    told = []
    assert write_cards(run_dir, progress=told.append) == [run_dir.bundle / CARD]
    assert "adapter_config.json" in told[0]["message"]
    assert not (run_dir.adapter / CARD).exists()


CLOSE = {"kl": 0.0123, "changed_rows": 0.025, "interval": [0.0, 0.05], "rows": 40}


@pytest.mark.parametrize(
    ("unit", "probabilities", "rows"),
    [
        (
            "token",
            "Its next-token probabilities are 0.0123 nats a token",
            "are right with one of the two and wrong",
        ),
        ("label", "Its label probabilities are 0.0123 nats a label", "got other labels from the two."),
    ],
)
def test_a_card_tells_how_close_the_bundle_is_to_what_was_measured(run_dir, unit, probabilities, rows):
    gain = {"score": {"kept": 0.981}, "loss": None, "closeness": {**CLOSE, "unit": unit}}
    bundle = open_bundle(run_dir.bundle)
    write_manifest(dataclasses.replace(bundle, verified={"passed": True, "gain_kept": gain}))
    write_cards(run_dir)
    text = (run_dir.bundle / CARD).read_text(encoding="utf-8")
    assert "Of the fine-tune's gain in score 98.1% came through to this bundle." in text
    assert f"{probabilities} from the fine-tune's." in text
    assert f"Of the rows 2.5% {rows}" in text


def test_a_card_of_a_bundle_that_was_not_compared_says_nothing_of_it(run_dir):
    write_cards(run_dir)
    text = (run_dir.bundle / CARD).read_text(encoding="utf-8")
    assert "probabilities" not in text
    assert "Of the rows" not in text
