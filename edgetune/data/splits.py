"""Where the rows of each split of a recipe's [data] come from. After read.py in the data flow.

Test rows fall back to the eval rows, eval rows to a part of the training rows that is set apart (set_apart.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from edgetune.data.files import Row
from edgetune.data.formats import Example
from edgetune.data.read import Split, describe, find, is_hub_id, rows, splits
from edgetune.errors import DataError
from edgetune.recipe import DataTable, Recipe

Part = Literal["train", "eval"]
PARTS: tuple[Part, ...] = ("train", "eval")
Read = Callable[[Split], Iterator[Example]]
"""Gives the examples of a split, of train rows at most data.max_train_rows."""


@dataclass(frozen=True)
class Source:
    """Rows by the name of their file, folder or data set."""

    data: DataTable
    name: str
    split: Split | None
    part: Part | None = None
    """Which part of the rows, where eval rows are set apart from training rows; None: all."""

    def rows(self) -> Iterator[Row]:
        """All rows of the split, in order. Raises DataError."""
        return rows(self.name, split=self.split, columns=self.data.columns)

    def first(self) -> Row:
        """The first row. Raises DataError if there is none."""
        first = next(self.rows(), None)
        if first is None:
            raise DataError(f"{self.name}: holds no rows")
        return first


def find_source(data: DataTable, which: Split) -> Source:
    """The source of a split. Raises DataError if a file or folder is not there."""
    named = {"eval": data.eval, "test": data.test}.get(which)
    if named is not None:
        return Source(data, named, which if which in splits(named) else None)
    if which == "train":
        return Source(data, data.train, None, None if has_eval_rows(data) else "train")
    if which in splits(data.train):
        return Source(data, data.train, which)
    return find_source(data, "eval") if which == "test" else Source(data, data.train, None, "eval")


def has_eval_rows(data: DataTable) -> bool:
    """Whether there are eval rows that are no part of the training rows."""
    return data.eval is not None or "eval" in splits(data.train)


def has_own_rows(recipe: Recipe, which: Split) -> bool:
    """Whether a split is a source of its own: named, or a file of its name in the training rows' folder."""
    named = {"train": recipe.data.train, "eval": recipe.data.eval, "test": recipe.data.test}[which]
    return named is not None or which in splits(recipe.data.train)


def is_trained_on(recipe: Recipe, which: Split) -> bool:
    """Whether a split that has_own_rows is the very file, or split, of the training rows."""
    source, trained = find_source(recipe.data, which), find_source(recipe.data, "train")
    if is_hub_id(source.name) or is_hub_id(trained.name):
        return (source.name, source.split or "train") == (trained.name, trained.split or "train")
    return (find(source.name).resolve(), source.split or "train") == (
        find(trained.name).resolve(),
        trained.split or "train",
    )


def source_of(recipe: Recipe, which: Split) -> str:
    """Where the rows of a split come from, for a report."""
    source = find_source(recipe.data, which)
    if source.part == "eval":
        return f"{recipe.data.eval_fraction:.0%} of {source.name}"
    return describe(source.name, source.split)
