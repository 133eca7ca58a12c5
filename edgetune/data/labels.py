"""Rows -> texts with labels: which columns hold them, and what counts as a label."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgetune.data.files import Row
from edgetune.data.formats import Example, encodable, text_of
from edgetune.errors import DataError
from edgetune.recipe import ClassifyTable

TEXT_COLUMNS = ("text", "sentence", "utterance", "query", "message", "content", "question")
LABEL_COLUMNS = ("label", "labels", "category", "intent", "class", "target")

SHOWN_CHARACTERS = 60
"""Of a label, in a message."""


def find_columns(row: Row) -> tuple[str, str]:
    """The columns of text and label by the first row's names. Raises DataError that lists what is there."""
    names = list(row.values)
    text = next((name for name in TEXT_COLUMNS if name in row.values), None)
    label = next((name for name in LABEL_COLUMNS if name in row.values and name != text), None)
    if text is None or label is None:
        missing = "text" if text is None else "label"
        raise DataError(
            f"{row.place}: no column for the {missing}; found: {', '.join(names) or '(none)'}",
            cure='name yours in [data], e.g. columns = { text = "review", label = "stars" }; the first line of a'
            " .csv or .tsv file names its columns",
        )
    return text, label


def to_labelled(row: Row, *, columns: tuple[str, str], table: ClassifyTable) -> Example:
    """A row as an example with labels. Raises DataError with the place for a label that is none."""
    text, label = columns
    for name in columns:
        if name not in row.values:
            raise DataError(f"{row.place}: no column {name!r}", cure=f"columns found: {', '.join(row.values)}")
    content = "" if row.values[text] is None else text_of(row, text)
    value = row.values[label]
    if table.multi_label:
        names = value if isinstance(value, list) else _separated(value, table.label_separator)
        return Example((), content, row.place, tuple(dict.fromkeys(_name(item, row, label) for item in names)))
    if isinstance(value, list):
        raise DataError(f"{row.place}: a list of labels", cure="set classify.multi_label = true")
    return Example((), content, row.place, (_name(value, row, label),))


def numbered(labels: Sequence[str]) -> dict[str, int]:
    """Each label's number: its place among the logits."""
    return {name: number for number, name in enumerate(labels)}


def label_numbers(example: Example, numbers: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of an example's labels. Raises DataError for a label that has none: see `numbered`."""
    for name in example.labels:
        if name not in numbers:
            shown = name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..."
            raise DataError(
                f"{example.place}: label {shown!r} does not occur in the training rows, which have"
                f" {len(numbers):,} others",
                cure="add training rows of it (data.max_train_rows may leave some out), or leave its rows out",
            )
    return tuple(numbers[name] for name in example.labels)


def as_targets(numbers: Sequence[tuple[int, ...]], labels: int, *, multi_label: bool) -> np.ndarray:
    """Label numbers of rows -> int64 (rows,), or bool (rows, labels)."""
    if not multi_label:
        return np.array([row[0] for row in numbers], np.int64)
    sets = np.zeros((len(numbers), labels), bool)
    for place, row in enumerate(numbers):
        sets[place, list(row)] = True
    return sets


def is_outside(example: Example, table: ClassifyTable, numbers: Mapping[str, int]) -> bool:
    """Whether a row is out of scope and no training row was: the head has no label for it, only a threshold."""
    return example.labels == (table.out_of_scope_label,) and table.out_of_scope_label not in numbers


def check_named(
    table: ClassifyTable, key: Literal["positive_label", "out_of_scope_label"], labels: Sequence[str]
) -> None:
    """Raises DataError if the recipe names a label that is none of these."""
    name = getattr(table, key)
    if name is not None and name not in labels:
        close = difflib.get_close_matches(name, labels, n=1)
        raise DataError(
            f"classify.{key}: {name!r} is no label of the training rows",
            cure=f"did you mean {close[0]!r}?" if close else f"they are {', '.join(labels[:10])}",
        )


def _separated(value: Any, separator: str) -> list[Any]:
    if value is None or not isinstance(value, str):
        return [] if value is None else [value]
    return [part.strip() for part in value.split(separator) if part.strip()]


def _name(value: Any, row: Row, column: str) -> str:
    """A label as text: names, whole numbers, true and false. Raises DataError for anything else.

    The same label has the same name from every kind of file: 1.0 of a parquet column and "1.0" of a .csv are "1".
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        value = None
    if isinstance(value, float) and not value.is_integer():
        raise DataError(
            f"{row.place}: column {column!r} holds {value}, a measured number and no label",
            cure="give names or whole numbers; EdgeTune fits no regressions",
        )
    if isinstance(value, int | float):
        return str(int(value))
    if not isinstance(value, str) or not value.strip():
        shown = "nothing" if value is None or value == "" else f"{value!r}"
        raise DataError(f"{row.place}: column {column!r} holds {shown}, no label", cure="fill it or leave the row out")
    text = encodable(value.strip(), f"{row.place}: column {column!r}")
    if text in ("True", "False"):
        return text.lower()
    if re.fullmatch(r"[+-]?\d+\.0+", text):
        return str(int(text.partition(".")[0]))
    if _is_fraction(text):
        raise DataError(
            f"{row.place}: column {column!r} holds {text}, a measured number and no label",
            cure="give names or whole numbers; EdgeTune fits no regressions",
        )
    return text


def _is_fraction(text: str) -> bool:
    """Whether a text is a number with a part behind the point that is not zero."""
    try:
        number = float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "-inf", "infinity") and not number.is_integer()
