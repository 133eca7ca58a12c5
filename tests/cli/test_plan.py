from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgetune.cli import main


@pytest.fixture
def recipe(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(f'[model]\nbase = "{tiny_base}"\n\n[data]\ntrain = "{tiny_rows}"\nmax_seq_len = 128\n')
    return path


def plan(recipe: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(recipe), *options])


def test_a_sound_recipe_gives_a_table_in_mib_with_a_total(recipe: Path) -> None:
    result = plan(recipe)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "data.train: first 62 rows read" in result.stdout
    assert "MiB" in result.stdout
    assert "total" in result.stdout


def test_json_is_one_document_with_bytes(recipe: Path) -> None:
    document = json.loads(plan(recipe, "--json", "--set", "budget.memory='64 GiB'").stdout)
    assert sum(document["parts_bytes"].values()) == document["peak_bytes"]
    assert document["budget_bytes"] == 64 * 1024**3
    assert document["fits"] is True
    counts = document["first_rows"]["train"]
    assert 0 < counts["trained_tokens"] < counts["tokens"]


def test_a_budget_that_is_too_small_exits_4_and_says_what_to_do(recipe: Path) -> None:
    result = plan(recipe, "--set", "budget.memory='100 MiB'")
    assert result.exit_code == 4
    assert "budget.memory is 100 MiB; lower train.batch_size" in result.stderr
    assert "total" in result.stdout


def test_all_problems_with_the_files_are_told_at_once(recipe: Path) -> None:
    result = plan(recipe, "--set", "model.base='./no-model'", "--set", "data.train='no-rows.jsonl'")
    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert "./no-model" in result.stderr
    assert "no-rows.jsonl" in result.stderr
    assert result.stdout == ""


def test_bad_rows_an_adapter_of_nowhere_and_broken_weights_are_found_without_loading(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-10])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt":\n')
    result = plan(
        recipe,
        *("--set", f"model.base='{base}'"),
        *("--set", f"data.eval='{bad}'"),
        *("--set", "lora.init_from='no-adapter'"),
    )
    assert result.exit_code == 2
    assert "corrupted or truncated" in result.stderr
    assert "bad.jsonl:2" in result.stderr
    assert "no-adapter" in result.stderr


def test_an_unknown_key_is_found_before_any_file(recipe: Path) -> None:
    result = plan(recipe, "--set", "lora.rnak=4")
    assert result.exit_code == 2
    assert "lora.rnak" in result.stderr


def test_a_base_that_could_not_be_exported_is_named_before_the_training(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "gpt"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["StableLmForCausalLM"]}))
    for verb in (["plan"], ["run", "-o", str(tmp_path / "run")]):
        result = CliRunner().invoke(main, [verb[0], str(recipe), "--set", f"model.base='{base}'", *verb[1:]])
        assert result.exit_code == 2
        assert "StableLmForCausalLM cannot be exported" in result.stderr
        assert "LlamaForCausalLM" in result.stderr
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.fixture
def label_recipe(tiny_encoder: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that makes a classifier's recipe of train and eval rows in CSV."""

    def make(train: str, held_out: str) -> Path:
        lines = [f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\n[data]']
        for name, rows in (("train", train), ("eval", held_out)):
            file = tmp_path / f"{name}.csv"
            file.write_text(f"text,label\n{rows}", encoding="utf-8")
            lines.append(f"{name} = {json.dumps(str(file))}")
        path = tmp_path / "labels.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return make


def test_a_classifier_s_plan_counts_labels(label_recipe: Callable[[str, str], Path]) -> None:
    rows = "yes please,yes\nno thanks,no\nyes,yes\n"
    result = plan(label_recipe(rows, rows))
    assert result.exit_code == 0, result.output
    assert "data.train: first 3 rows read" in result.stdout
    assert "2 labels; 0 rows longer" in result.stdout


def test_labels_that_training_would_refuse_are_found_by_the_plan(label_recipe: Callable[[str, str], Path]) -> None:
    path = label_recipe("yes please,yes\nno thanks,no\n", "perhaps,maybe\n")
    result = plan(path)
    assert result.exit_code == 2
    assert "label 'maybe' does not occur in the training rows" in result.stderr
    misspelt = plan(path, "--set", "classify.positive_label=ja")
    assert "'ja' is no label" in misspelt.stderr
