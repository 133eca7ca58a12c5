"""What a path outside any run names, and where its results go: edgetune/evaluate/by_path.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetune.errors import BundleError, RecipeError, RunError
from edgetune.evaluate.by_path import evaluate_path, targets_of
from edgetune.evaluate.task import TASKS
from edgetune.recipe import ModelTable
from edgetune.run_dir import RunDir
from edgetune.task_names import TaskName


@pytest.mark.parametrize("name", ["rows.json", "summary.json", "bundle.json"])
def test_results_never_take_the_place_of_the_rows(word_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(word_bundle, tmp_path / "bundle")
    rows = tmp_path / name
    rows.write_text('[{"text": "a card", "label": "card"}]')
    with pytest.raises(RunError, match=f"{name}: the results would take its place; choose another folder with --out"):
        evaluate_path(str(bundle), overrides=[f"data.test={json.dumps(str(rows))}"], out=tmp_path)
    assert rows.read_text() == '[{"text": "a card", "label": "card"}]'
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", name]


def test_a_bare_folder_is_held_as_it_is_asked_for(tiny_base: Path) -> None:
    rows = "data.test='x.jsonl'"
    asked = targets_of(str(tiny_base), overrides=[rows, "model.compute-dtype=float32", "model.quantization=nf4"])
    for table in (asked.recipe.model, asked.targets[0].model, asked.reader.model):
        assert table == ModelTable(base=str(tiny_base), quantization="nf4", compute_dtype="float32")
    plain = targets_of(str(tiny_base), overrides=[rows]).targets[0].model
    assert plain == ModelTable(base=str(tiny_base), quantization="none")


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_a_run_folder_is_asked_for_what_is_there_which_may_be_nothing(request, tmp_path: Path, task: TaskName) -> None:
    """A base that can be scored is there from the start."""
    base = request.getfixturevalue({"generation": "tiny_base", "classification": "tiny_encoder"}[task])
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    data = tmp_path / "rows.jsonl"
    text = f'[model]\nbase = "{base}"\ntask = "{task}"\n[data]\ntrain = "{data}"\n'
    run_dir.recipe.write_text(text, encoding="utf-8")
    run_dir.update({})
    if TASKS[task].HAS_BASE:
        assert [target.kind for target in targets_of(str(run_dir.path)).targets] == ["base"]
    else:
        with pytest.raises(RunError, match="run: nothing to evaluate; give the run folder, its adapter"):
            targets_of(str(run_dir.path))


@pytest.mark.parametrize(
    ("target", "key", "message"),
    [
        ("tiny_bundle", "compute_dtype=float32", r"--set model\.compute_dtype: has no effect on a bundle; leave"),
        ("tiny_base", "base=x", r"--set model\.base: .* says that itself; can be set: quantization, "),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(request, target: str, key: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        targets_of(str(request.getfixturevalue(target)), overrides=["data.test='x.jsonl'", f"model.{key}"])


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("edgetune.json", "is an onnxruntime-genai folder without edgetune.json"),
        ("model.onnx", "incomplete bundle: model.onnx is missing"),
        ("tokenizer.json", "incomplete bundle: tokenizer.json is missing"),
    ],
)
def test_a_bundle_that_lacks_a_file_is_still_taken_for_one(
    tiny_bundle: Path, tmp_path: Path, lost: str, message: str
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / lost).unlink()
    with pytest.raises(BundleError, match=message):
        evaluate_path(str(bundle), overrides=["data.test='x.jsonl'"], out=tmp_path / "out")
