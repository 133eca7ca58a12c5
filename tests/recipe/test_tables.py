"""Every key of every table is in the reference, to which the README leads."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from edgetune.recipe import TABLES

ROOT = Path(__file__).parents[2]
README, REFERENCE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/recipe.md"))


def test_every_key_is_in_its_table_s_section_of_the_reference() -> None:
    sections = dict(re.findall(r"^## \[(\w+)\]\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(TABLES)
    for table, kind in TABLES.items():
        rows = re.findall(r"^\| `(\w+)` \|", sections[table], re.MULTILINE)
        assert rows == [item.name for item in dataclasses.fields(kind)]


def test_the_readme_leads_to_each_table_and_names_keys_that_it_has() -> None:
    for table, kind in TABLES.items():
        begin = f"| [`[{table}]`](docs/recipe.md#{table}) |"
        (line,) = [line for line in README.splitlines() if line.startswith(begin)]
        named = re.findall(r"`(\w+)`", line)
        assert named
        assert set(named) <= {item.name for item in dataclasses.fields(kind)}


def test_there_are_so_many_keys() -> None:
    """A key more needs a reader, a row of the reference, and a reason why no old key serves; then this number."""
    counts = {table: len(dataclasses.fields(kind)) for table, kind in TABLES.items()}
    assert (sum(counts.values()), counts) == (
        107,
        {
            "model": 8,
            "data": 13,
            "classify": 11,
            "lora": 8,
            "train": 24,
            "tune": 15,
            "export": 16,
            "evaluate": 7,
            "budget": 5,
        },
    )
