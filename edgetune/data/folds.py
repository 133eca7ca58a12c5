"""Rows dealt into folds for cross-validation: evenly, by label and by group.

In the flow: all labelled rows of a recipe -> for each fold a file of rows to learn from and one of rows held out ->
a training and a score for each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.data.formats import Example
from edgetune.data.prepare import training_rows
from edgetune.data.replay import write_rows
from edgetune.errors import DataError, shown
from edgetune.recipe import Recipe

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"


@dataclass(frozen=True)
class Dealt:
    """Which rows are held out of which fold."""

    rows: tuple[Example, ...]
    folds: np.ndarray
    """int64 (rows,): the fold that each row is held out of, from 0."""
    groups: int
    """Rows that stay together count once."""


def deal(recipe: Recipe) -> Dealt:
    """The recipe's training rows, eval rows that are set apart from them included, dealt into evaluate.folds folds.

    Rows of one group, by the column evaluate.folds_by, are in one fold, and so are rows that say the same; folds have
    nearly as many rows, and as many of each label, as the groups allow. Raises DataError: no such column, fewer groups
    than folds, a label that a training would not see.
    """
    count, column = recipe.evaluate.folds or 0, recipe.evaluate.folds_by
    rows, keys = [], []
    for values, example in training_rows(recipe):
        if column is not None and column not in values:
            raise DataError(f"{example.place}: no column {column!r}, which evaluate.folds_by names")
        rows.append(example)
        keys.append((values[column],) if column is not None else (example.messages, example.text, example.labels))
    groups = _groups([repr(key) for key in keys])
    if len(groups) < count:
        what = f"groups by {column!r}" if column is not None else "rows that are not alike"
        raise DataError(
            f"{recipe.data.train}: {len(groups)} {what}, {count} folds want as many at least",
            cure="lower evaluate.folds",
        )
    folds = assign(groups, [row.labels for row in rows], count, seed=recipe.train.seed)
    _check_labels(recipe, rows, folds)
    return Dealt(tuple(rows), folds, len(groups))


def write_fold(recipe: Recipe, dealt: Dealt, fold: int, folder: Path) -> None:
    """The rows to learn from and the rows held out, as files in a folder."""
    parts: dict[str, list[Example]] = {TRAIN: [], HELD_OUT: []}
    for row, number in zip(dealt.rows, dealt.folds, strict=True):
        parts[HELD_OUT if number == fold else TRAIN].append(row)
    for name, rows in parts.items():
        write_rows(folder / name, rows, recipe)


def assign(
    groups: Sequence[Sequence[int]], labels: Sequence[tuple[str, ...]], count: int, *, seed: int = 0
) -> np.ndarray:
    """The fold of each row, int64 (rows,), from 0: groups stay whole, labels and rows are spread evenly.

    Groups go one after the other, large ones first and else by the seed, where they make the squared shares of labels
    and rows grow least. Greedy, as scikit-learn's StratifiedGroupKFold; a row alone is a group of one, and a row with
    several labels counts in each (Sechidis et al. 2011, On the Stratification of Multi-Label Data).
    """
    names = {name: number for number, name in enumerate(sorted({label for row in labels for label in row}))}
    totals = Counter(label for row in labels for label in row)
    weights = np.array([1.0 / totals[name] ** 2 for name in names])
    drawn = np.random.default_rng(seed).permutation(len(groups)).tolist()
    order = sorted(drawn, key=lambda place: -len(groups[place]))
    held, sizes = np.zeros((count, len(names))), np.zeros(count)
    folds = np.zeros(len(labels), np.int64)
    for place in order:
        group = groups[place]
        found = Counter(names[label] for row in group for label in labels[row])
        numbers, added = np.array(list(found), np.int64), np.array(list(found.values()), np.float64)
        growth = ((2 * held[:, numbers] + added) * added * weights[numbers]).sum(1)
        growth += (2 * sizes + len(group)) * len(group) / len(labels) ** 2
        fold = int(growth.argmin())
        held[fold, numbers] += added
        sizes[fold] += len(group)
        folds[list(group)] = fold
    return folds


def _groups(keys: Sequence[str]) -> list[list[int]]:
    """The rows of each key, keys in the order in which they come."""
    found: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        found[key].append(row)
    return list(found.values())


def _check_labels(recipe: Recipe, rows: Sequence[Example], folds: np.ndarray) -> None:
    """Raises DataError for a label all of whose rows are held out of one fold: nothing could learn it there."""
    where: Mapping[str, set[int]] = defaultdict(set)
    for row, fold in zip(rows, folds.tolist(), strict=True):
        for label in row.labels:
            where[label].add(fold)
    alone = [label for label, found in where.items() if len(found) < 2]
    if alone:
        by = f" of column {recipe.evaluate.folds_by!r}" if recipe.evaluate.folds_by else ""
        more = f" (and {len(alone) - 1} more labels)" if len(alone) > 1 else ""
        raise DataError(
            f"{recipe.data.train}: label {shown(alone[0])}{more} is in one group{by} only, so that one fold learns"
            " without it",
            cure="add rows of it, or leave it out",
        )
