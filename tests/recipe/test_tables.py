"""Every key of every table is in the README."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgetune.recipe import TABLES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_key_is_documented_in_the_readme() -> None:
    missing = [
        f"{table}.{item.name}"
        for table, kind in TABLES.items()
        for item in dataclasses.fields(kind)
        if f"`{item.name}`" not in README
    ]
    assert not missing


def test_every_key_is_in_its_table_s_line_of_the_readme() -> None:
    for table, kind in TABLES.items():
        line = next(line for line in README.splitlines() if line.startswith(f"| `[{table}]`"))
        assert [item.name for item in dataclasses.fields(kind) if f"`{item.name}`" not in line] == []


def test_there_are_so_many_keys() -> None:
    """A key more needs a reader, a line of the README, and a reason why no old key serves; then this number."""
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
