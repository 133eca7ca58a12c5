"""What a path outside any run names, and where its results go: edgetune/evaluate/by_path.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetune.errors import BundleError, RunError
from edgetune.evaluate.by_path import evaluate_path


@pytest.mark.parametrize("name", ["rows.json", "summary.json", "bundle.json"])
def test_results_never_take_the_place_of_the_rows(word_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(word_bundle, tmp_path / "bundle")
    rows = tmp_path / name
    rows.write_text('[{"text": "a card", "label": "card"}]')
    with pytest.raises(RunError, match=f"{name}: the results would take its place; choose another folder with --out"):
        evaluate_path(str(bundle), overrides=[f"data.test={json.dumps(str(rows))}"], out=tmp_path)
    assert rows.read_text() == '[{"text": "a card", "label": "card"}]'
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", name]


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
