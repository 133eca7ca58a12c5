"""Rows in a file, a recipe that reads them, and the tokenizer that they are encoded with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from edgetune.recipe import Recipe, parse_recipe


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    """Of `tiny_base`, the test's own: it may change it."""
    from edgetune.model.base import load_tokenizer

    return load_tokenizer(tiny_base)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[Iterable[dict[str, Any]]], Path]:
    """`rows_file(table)`: rows.jsonl with these rows."""

    def write(table: Iterable[dict[str, Any]]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        return path

    return write


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """`recipe(source, "data.loss_on=all", ...)`: a recipe that trains on it, with keys set as on the command line."""

    def make(source: Path | str, *overrides: str) -> Recipe:
        text = f'[model]\nbase = "edgetune:nano"\n[data]\ntrain = {json.dumps(str(source))}\nmax_seq_len = 256\n'
        return parse_recipe(text, source="a.toml", overrides=overrides)

    return make
