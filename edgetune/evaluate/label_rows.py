"""The texts that every target labels: the same rows, labels and settings for adapter and bundle.

In the flow: the evaluating process reads the data once and writes a file; each target is measured in a process of its
own that reads the file. This module needs neither torch nor transformers to read.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from edgetune.data.labels import as_targets, check_named, label_numbers, numbered
from edgetune.errors import DataError, RunError
from edgetune.evaluate.resample import Bootstrap
from edgetune.files import read_json
from edgetune.hashes import hash_values
from edgetune.recipe import DataTable, Recipe
from edgetune.task_names import TaskName


@dataclass(frozen=True)
class LabelRow:
    """A text, the numbers of its labels, and where it comes from."""

    text: str
    labels: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class LabelSet:
    """Texts to score, texts to calibrate on, and how they are scored."""

    task: ClassVar[TaskName] = "classification"
    rows: tuple[LabelRow, ...]
    calibration: tuple[LabelRow, ...]
    """The eval rows: temperature and threshold are chosen on them."""
    scores_calibration_rows: bool
    """The rows to score are eval rows as well, for want of test rows: what is chosen on them suits them too well."""
    labels: tuple[str, ...]
    """Those of the head; then the one out of scope where the head has none for it."""
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
    def text_hash(self) -> str:
        """SHA-256, hex: equal where two targets see the same texts."""
        return hash_values([row.text for row in self.rows])

    @property
    def dropped(self) -> int:
        """Rows that cannot be scored and were left out."""
        return self.dropped_empty

    @property
    def left_out(self) -> str:
        """What became of rows that cannot be scored, for a user; "" if there are none."""
        return f"{self.dropped} rows without text were left out" if self.dropped else ""

    @property
    def out_of_scope(self) -> int | None:
        """The number of the label that means unknown."""
        return None if self.out_of_scope_label is None else self.labels.index(self.out_of_scope_label)


def make_label_set(recipe: Recipe, labels: Sequence[str]) -> LabelSet:
    """The recipe's test rows (else its eval rows) with the eval rows to calibrate on; at most evaluate.max_rows.

    Rows without text are left out and counted. Raises DataError: no row is left, or none in scope, a label that
    training does not have (but the one out of scope), a positive or out-of-scope label that no row has.
    """
    from edgetune.data.splits import source_of

    calibrating, source = make_calibration_set(recipe, labels), source_of(recipe, "test")
    found, empty = _rows(recipe, "test", calibrating.labels)
    check_named(recipe.classify, "out_of_scope_label", (*labels, *_outside(calibrating, found)))
    drawn = found
    if recipe.evaluate.max_rows is not None and recipe.evaluate.max_rows < len(found):
        places = random.Random(recipe.train.seed).sample(range(len(found)), recipe.evaluate.max_rows)
        drawn = [found[index] for index in sorted(places)]
    if not drawn:
        raise DataError(f"{source}: no row with a text to evaluate on")
    if all(row.labels == (calibrating.out_of_scope,) for row in drawn):
        raise DataError(f"{source}: every row is out of scope", cure="add rows of the other labels")
    return dataclasses.replace(
        calibrating,
        rows=tuple(drawn),
        scores_calibration_rows=_contents(found) == _contents(calibrating.calibration),
        source=source,
        source_rows=len(found) + empty,
        dropped_empty=empty,
    )


def make_calibration_set(recipe: Recipe, labels: Sequence[str]) -> LabelSet:
    """A recipe's eval rows to calibrate on, without rows to score; test rows are not read.

    The out-of-scope label is the last of the labels where the head has none for it. Raises DataError.
    """
    from edgetune.data.splits import source_of

    table = recipe.classify
    check_named(table, "positive_label", labels)
    if table.out_of_scope_label is not None and table.out_of_scope_label not in labels:
        labels = (*labels, table.out_of_scope_label)
    which: Literal["eval", "test"] = "test" if _is_one_source(recipe.data) else "eval"
    found, empty = _rows(recipe, which, labels)
    source = source_of(recipe, which)
    if not found:
        raise DataError(f"{source}: no row with a text to calibrate on")
    return LabelSet(
        rows=(),
        calibration=tuple(found),
        scores_calibration_rows=False,
        labels=tuple(labels),
        multi_label=table.multi_label,
        metric=recipe.evaluate.metric,
        positive_label=table.positive_label,
        out_of_scope_label=table.out_of_scope_label,
        false_accept_rate=table.false_accept_rate,
        bootstrap_samples=Bootstrap.samples,
        confidence=Bootstrap.confidence,
        seed=recipe.train.seed,
        source=source,
        source_rows=len(found) + empty,
        dropped_empty=empty,
    )


def targets_of(rows: Iterable[LabelRow], label_set: LabelSet) -> np.ndarray:
    """int64 (rows,), or bool (rows, labels)."""
    return as_targets([row.labels for row in rows], len(label_set.labels), multi_label=label_set.multi_label)


def read_label_set(path: Path) -> LabelSet:
    """The label set in a file. Raises RunError if it is missing or damaged."""
    try:
        values = read_json(path, cure="run the evaluation again")
        for name in ("rows", "calibration"):
            values[name] = tuple(map(_row, values[name]))
        return LabelSet(**{**values, "labels": tuple(values["labels"])})
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {error}", cure="run the evaluation again") from None


def _outside(calibrating: LabelSet, scored: Iterable[LabelRow]) -> Iterable[str]:
    """The out-of-scope label, if a row to calibrate on or to score has it."""
    numbers = (calibrating.out_of_scope,)
    if any(row.labels == numbers for row in (*calibrating.calibration, *scored)):
        yield str(calibrating.out_of_scope_label)


def _row(values: Mapping[str, Any]) -> LabelRow:
    return LabelRow(values["text"], tuple(values["labels"]), values["place"])


def _rows(recipe: Recipe, which: Literal["eval", "test"], labels: Sequence[str]) -> tuple[list[LabelRow], int]:
    """A split's rows with a text, and how many have none."""
    from edgetune.data.prepare import examples

    rows, empty, numbers = list[LabelRow](), 0, numbered(labels)
    for example in examples(recipe, which):
        if text := (example.text or "").strip() and example.text:
            rows.append(LabelRow(text, label_numbers(example, numbers), example.place))
        else:
            empty += 1
    return rows, empty


def _is_one_source(data: DataTable) -> bool:
    """Whether train, eval and test are one source without eval rows of its own, as for a target that no run made.

    Its train split is then what the target may have learned from: only the rows to score are left to calibrate on.
    """
    from edgetune.data.read import splits

    return data.eval is not None and data.train == data.eval == data.test and "eval" not in splits(data.eval)


def _contents(rows: Iterable[LabelRow]) -> list[tuple[str, tuple[int, ...]]]:
    """Texts and labels, wherever they lie: a copy of the eval rows holds the same."""
    return [(row.text, row.labels) for row in rows]
