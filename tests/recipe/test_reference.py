"""docs/recipe.md: every key, as the tables have it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgetune.recipe import TABLES
from edgetune.recipe.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_that_of_the_tables() -> None:
    made = reference()
    assert PAGE.read_text(encoding="utf-8") == made, "run: python -m edgetune.recipe.reference > docs/recipe.md"
    rows = [line for line in made.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(dataclasses.fields(kind)) for kind in TABLES.values())


def test_every_key_says_what_it_is() -> None:
    assert [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")] == []


def test_a_row_has_values_bounds_and_the_defaults_of_both_tasks() -> None:
    page = reference()
    assert "| `dropout` | a number, at least 0, at most 0.95 | `0.0` |" in page
    assert "| `batch_size` | 'auto' or an integer, at least 1 | `4`; classification: `32` |" in page
    assert "| `train` | a text in quotes |  | File (.jsonl" in page
    assert "| `revision` | a text in quotes | - | Branch, tag or commit of a hub id. |" in page
