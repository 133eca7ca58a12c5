"""The texts that every target of a classifier labels: the same rows, labels and settings for adapter and bundle.

In the flow: the evaluating process reads the data once and writes a file; each target is measured in a process of its
own that reads the file. This module needs neither torch nor transformers to read.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.data.labels import as_targets, check_named, label_numbers
from edgetune.errors import DataError, RunError
from edgetune.files import atomic_file
from edgetune.hashes import hash_values
from edgetune.recipe import Recipe


@dataclass(frozen=True)
class LabelRow:
    """A text, the numbers of its labels, and where it comes from."""

    text: str
    labels: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class LabelSet:
    """Texts to score, texts to calibrate on, and how they are scored."""

    rows: tuple[LabelRow, ...]
    calibration: tuple[LabelRow, ...]
    """The eval rows: temperature and threshold are chosen on them, never on the rows that are scored."""
    labels: tuple[str, ...]
    multi_label: bool
    metric: str
    positive_label: str | None
    out_of_scope_label: str | None
    false_accept_rate: float | None
    bootstrap_samples: int
    confidence: float
    seed: int
    source: str
    source_rows: int
    dropped_empty: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything, hex."""
        return hash_values(self)

    @property
    def left_out(self) -> str:
        """What became of rows that cannot be scored, for a user; "" if there are none."""
        return f"{self.dropped_empty} rows without text were left out" if self.dropped_empty else ""

    @property
    def out_of_scope(self) -> int | None:
        """The number of the label that means unknown."""
        return None if self.out_of_scope_label is None else self.labels.index(self.out_of_scope_label)


def make_label_set(recipe: Recipe, labels: Sequence[str]) -> LabelSet:
    """The recipe's test rows (else its eval rows) with the eval rows to calibrate on; at most evaluate.max_rows.

    Rows without text are left out and counted. Raises DataError: no row is left, a label that training does not have,
    a positive or out-of-scope label that is no label.
    """
    table = recipe.classify
    check_named(table, labels)
    found, empty = _rows(recipe, "test", labels)
    drawn = found
    if recipe.evaluate.max_rows is not None and recipe.evaluate.max_rows < len(found):
        places = random.Random(recipe.train.seed).sample(range(len(found)), recipe.evaluate.max_rows)
        drawn = [found[index] for index in sorted(places)]
    source = recipe.data.test or recipe.data.eval or recipe.data.train
    if not drawn:
        raise DataError(f"{source}: no row with a text to evaluate on")
    return LabelSet(
        rows=tuple(drawn),
        calibration=() if recipe.data.eval == source else tuple(_rows(recipe, "eval", labels)[0]),
        labels=tuple(labels),
        multi_label=table.multi_label,
        metric=recipe.evaluate.metric,
        positive_label=table.positive_label,
        out_of_scope_label=table.out_of_scope_label,
        false_accept_rate=table.false_accept_rate,
        bootstrap_samples=recipe.evaluate.bootstrap_samples,
        confidence=recipe.evaluate.confidence,
        seed=recipe.train.seed,
        source=source,
        source_rows=len(found) + empty,
        dropped_empty=empty,
    )


def targets_of(rows: Iterable[LabelRow], label_set: LabelSet) -> np.ndarray:
    """int64 (rows,), or bool (rows, labels)."""
    return as_targets([row.labels for row in rows], len(label_set.labels), multi_label=label_set.multi_label)


def write_label_set(path: Path, label_set: LabelSet) -> None:
    """Write a label set as JSON, atomically. Raises RunError."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(label_set), ensure_ascii=False), encoding="utf-8")


def read_label_set(path: Path) -> LabelSet:
    """The label set in a file. Raises RunError if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("rows", "calibration"):
            values[name] = tuple(map(_row, values[name]))
        return LabelSet(**{**values, "labels": tuple(values["labels"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {error}", cure="run the evaluation again") from None


def _row(values: Mapping[str, Any]) -> LabelRow:
    return LabelRow(values["text"], tuple(values["labels"]), values["place"])


def _rows(recipe: Recipe, which: Any, labels: Sequence[str]) -> tuple[list[LabelRow], int]:
    """A split's rows with a text, and how many have none."""
    from edgetune.data.prepare import examples

    every = list(examples(recipe, which))
    filled = [example for example in every if (example.text or "").strip()]
    rows = [LabelRow(example.text or "", label_numbers(example, labels), example.place) for example in filled]
    return rows, len(every) - len(filled)
