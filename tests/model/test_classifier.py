"""classifier.json of an adapter or merged folder: edgetune/model/classifier.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import ModelError
from edgetune.model.classifier import ClassifierSpec, read_spec

SPEC = ClassifierSpec(labels=("a", "b"), pooling="mean", head="cosine", scale=20.0, multi_label=False, max_length=16)


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "classifier.json").write_text(json.dumps(dataclasses.asdict(SPEC)))
    assert read_spec(tmp_path) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "labels: must be names, each of them once"),
        ({"labels": ["a", "a"]}, "labels: must be names, each of them once"),
        ({"labels": "ab"}, "labels: 'ab' is not a list"),
        ({"labels": ["a", 1]}, "labels: "),
        ({"labels": ["a", "\ud800"]}, "labels: holds half a surrogate pair"),
        ({"pooling": "max"}, "pooling: 'max' is not 'mean' or 'cls' or 'pooler'"),
        ({"head": None}, "head: None is not 'cosine' or 'linear'"),
        ({"scale": "20"}, "scale: '20' is not a number"),
        ({"scale": 0}, "scale: 0.* must be greater than 0"),
        ({"scale": float("nan")}, "scale: nan is not a number"),
        ({"multi_label": 1}, "multi_label: 1 is not true or false"),
        ({"max_length": 0}, "max_length: 0 must be at least 1"),
        ({"max_length": 2**63}, "max_length: "),
        ({"max_length": 8.0}, "max_length: 8.0 is not an integer"),
        ({"softness": 1}, "softness: unknown key"),
    ],
)
def test_a_spec_that_cannot_be_trusted_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "classifier.json").write_text(json.dumps({**dataclasses.asdict(SPEC), **change}))
    with pytest.raises(ModelError, match=rf"classifier\.json: {message}.*; train or copy it again$"):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_a_damaged_spec_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "classifier.json").write_text(text)
    with pytest.raises(ModelError, match=r"classifier\.json: [^\n]*; train or copy it again$"):
        read_spec(tmp_path)


def test_a_label_out_of_scope_that_training_never_saw_is_none_of_the_labels(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, out_of_scope_label="c")
    (tmp_path / "classifier.json").write_text(json.dumps(dataclasses.asdict(spec)))
    assert read_spec(tmp_path) == spec
