"""A task of lm-evaluation-harness as files, for comparing two ways of scoring: which answer belongs to a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHOICES = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: "ROWS"}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
"""Rows have a `prompt`, some `choices` that may follow it as they are, and the place of the right one as `label`."""


def write_task(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], *, text: str = CHOICES) -> Path:
    """Write a task and its rows into `folder`, made if need be, and return that; in `text`, NAME and ROWS stand for its
    name and for the file of its rows.
    """
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(text.replace("NAME", name).replace("ROWS", str(file)), encoding="utf-8")
    return folder
