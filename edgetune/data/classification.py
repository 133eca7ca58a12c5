"""Texts with labels for an encoder: rows -> examples -> token ids and targets, and what became of the rows.

Rows come from the same sources as conversations do (read.py), or from one folder of .txt files a label. The labels are
those of the training rows, sorted, or those of the head that lora.init_from goes on from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from edgetune.data.encode import Encoded, check_tokens, in_batches
from edgetune.data.files import Row
from edgetune.data.formats import Example
from edgetune.data.labels import (
    as_targets,
    check_named,
    find_columns,
    is_outside,
    label_numbers,
    numbered,
    to_labelled,
)
from edgetune.data.report import LabelReport
from edgetune.data.splits import Part, Read, Source, find_source, source_of
from edgetune.data.tokens import LabelledTokens, open_labelled, write_labelled
from edgetune.errors import DataError, shown
from edgetune.model.classifier import SPEC, read_spec
from edgetune.model.config import text_limit
from edgetune.recipe import ClassifyTable, DataTable, Recipe

BATCH_ROWS = 1024


def reader(recipe: Recipe, source: Source) -> Callable[[Row], Example]:
    """How rows of a source become texts with labels. Raises DataError."""
    return partial(to_labelled, columns=find_columns(source.first()), table=recipe.classify)


def as_row(example: Example, recipe: Recipe) -> dict[str, Any]:
    """An example as a row that reads back as it is, whatever the columns of its own file are called."""
    return {
        "text": example.text,
        "label": list(example.labels) if recipe.classify.multi_label else example.labels[0],
    }


def refuse_other_labels(rows: Iterable[Example], labels: Sequence[str], recipe: Recipe) -> None:
    """Raises DataError for a row with a label that is none of these, nor the one out of scope."""
    known = {*labels, recipe.classify.out_of_scope_label}
    for example in rows:
        for label in example.labels:
            if label not in known:
                raise DataError(
                    f"{example.place}: label {shown(label)} is none that the classifier was trained with",
                    cure="train a new one on old and new rows: its head has a place for each label",
                )


def longest_row(recipe: Recipe, base: Path, tokenizer: Any) -> int:
    """Tokens of a text, special ones included, at most: what is longer is cut, left out or refused."""
    return min(recipe.data.max_seq_len, text_limit(base, tokenizer))


def encoder(recipe: Recipe, tokenizer: Any, read: Read, labels: Sequence[str], max_length: int) -> Encoder:
    """What makes token ids and targets of the recipe's examples."""
    return Encoder(recipe, tokenizer, read, tuple(labels), max_length)


def check_labels(recipe: Recipe, read: Read) -> tuple[str, ...]:
    """The labels of the training rows, sorted, once the rows and labels of all splits can be used.

    Reads every row; what would stop a later stage stops here. Raises DataError: unreadable rows with their place, fewer
    than two labels, an eval or test label that training does not have (but the one out of scope), a split without text
    or with nothing but rows out of scope, a label that the recipe names and no row has.
    """
    table = recipe.classify
    labels = _labels_of(read("train"), recipe.data, known=_labels_gone_on_from(recipe))
    check_named(table, "positive_label", labels)
    numbers, outside = numbered(labels), 0
    splits: tuple[Literal["eval", "test"], ...] = ("eval", "test")
    for split in splits:
        found = [_is_scored(example, table, numbers) for example in read(split) if _has_text(example)]
        if not found:
            raise DataError(f"{source_of(recipe, split)}: no {split} row has a text", cure="give rows with a text")
        if not any(found):
            raise DataError(
                f"{source_of(recipe, split)}: every row is out of scope", cure="add rows of the other labels"
            )
        outside += found.count(False)
    check_named(table, "out_of_scope_label", (*labels, *([str(table.out_of_scope_label)] if outside else [])))
    return labels


def _has_text(example: Example) -> bool:
    return bool((example.text or "").strip())


def _is_scored(example: Example, table: ClassifyTable, numbers: Mapping[str, int]) -> bool:
    """Whether a row has labels of the head, and not the one out of scope that it lacks. Raises DataError for others."""
    if is_outside(example, table, numbers):
        return False
    label_numbers(example, numbers)
    return True


def head_gone_on_from(recipe: Recipe, labels: Sequence[str]) -> Path | None:
    """The adapter folder whose head the training goes on from: that of lora.init_from, if it has one for these labels.

    Another kind of head, or other labels, mean a new head.
    """
    folder = Path(recipe.lora.init_from).expanduser() if recipe.lora.init_from else None
    return folder if folder and _labels_gone_on_from(recipe) == tuple(labels) else None


def _labels_gone_on_from(recipe: Recipe) -> tuple[str, ...]:
    """The labels of the head in lora.init_from, if it is of the recipe's kind; () without one."""
    folder = Path(recipe.lora.init_from).expanduser() if recipe.lora.init_from else None
    if folder is None or not (folder / SPEC).is_file():
        return ()
    spec, table = read_spec(folder), recipe.classify
    is_same = (spec.head, spec.pooling, spec.multi_label) == (table.head, table.pooling, table.multi_label)
    return spec.labels if is_same else ()


def _labels_of(rows: Iterable[Example], data: DataTable, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The labels of the training rows, sorted; `known` ones instead if they have all of these.

    Raises DataError if there are fewer than two.
    """
    found, filled, empty = set[str](), 0, 0
    for row in rows:
        if _has_text(row):
            filled += 1
            found.update(row.labels)
        else:
            empty += 1
    if found and found.issubset(known):
        return known
    if len(found) < 2:
        what = f"one label only, {next(iter(found))!r}" if found else "no labels"
        if not filled:
            what = f"none of the {empty:,} training rows has a text" if empty else "no row has a text to train on"
        first = "" if data.max_train_rows is None else "raise data.max_train_rows, or "
        raise DataError(f"{data.train}: {what}; a classifier needs two labels", cure=f"{first}give rows of more labels")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Encoder:
    """Texts as token ids with targets; rows without text are left out, those out of scope where no training row is, and
    texts that are too long cut, left out or refused as data.too_long says.
    """

    recipe: Recipe
    tokenizer: Any
    read: Read
    labels: tuple[str, ...]
    max_length: int
    cache_name: ClassVar[str] = "labelled"

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides the arrays beside source, tokenizer and the common keys of [data]."""
        table = self.recipe.classify
        told = (self.labels,) if head_gone_on_from(self.recipe, self.labels) else ()
        return (self.max_length, *told, table.multi_label, table.label_separator, table.out_of_scope_label)

    def kept(self, part: Part, counts: Counter[str]) -> Iterator[tuple[Example, Encoded]]:
        """The rows that are trained or evaluated on; all others are counted."""
        for batch in in_batches(self._inside(part, counts), BATCH_ROWS):
            filled = [example for example in batch if _has_text(example)]
            counts["empty"] += len(batch) - len(filled)
            found = zip(filled, self._ids(filled) if filled else [], strict=True)
            pairs = [(example, ids) for example, ids in found if self._fits(example, ids, counts)]
            lists = [list(ids) for _, ids in pairs]
            if any(len(ids) > self.max_length for ids in lists):
                lists = self._ids([example for example, _ in pairs], truncation=True, max_length=self.max_length)
            for (example, _), ids in zip(pairs, lists, strict=True):
                check_tokens(ids, self.tokenizer, example.place)
                counts["tokens"] += len(ids)
                yield example, Encoded(ids, ids, example.place)

    def write(self, rows: Iterable[tuple[Example, Encoded]], path: Path) -> int:
        """Token ids and targets of rows as files that begin with `path`; how many rows they are."""
        is_set = self.recipe.classify.multi_label

        def batches() -> Iterator[tuple[list[Encoded], np.ndarray]]:
            for batch in in_batches(rows, BATCH_ROWS):
                numbers = [label_numbers(example, self._numbers) for example, _ in batch]
                yield [row for _, row in batch], as_targets(numbers, len(self.labels), multi_label=is_set)

        return write_labelled(batches(), path)

    def open(self, path: Path, key: str) -> LabelledTokens:
        """The rows that `write` wrote; `key` identifies what they were made from."""
        return open_labelled(path, key, labels=len(self.labels))

    def nothing_left(self, part: Part, counts: Mapping[str, int]) -> DataError:
        """Why no row of a part can be used."""
        return DataError(
            f"{source_of(self.recipe, part)}: no {part} row can be used, {counts['too_long']:,} are too long",
            cure='raise data.max_seq_len, or set data.too_long = "truncate"',
        )

    def report(self, counts: Mapping[Part, Mapping[str, int]], folder: Path) -> LabelReport:
        """What became of the rows that `kept` counted, their arrays being in `folder`."""
        recipe, train, held_out = self.recipe, counts["train"], counts["eval"]
        text, label = find_columns(find_source(recipe.data, "train").first())
        per_label = self.open(folder / "train", "").counts()
        fewest, most = int(per_label.argmin()), int(per_label.argmax())
        return LabelReport(
            columns=f"text in {text!r}, label in {label!r}",
            train_rows=train["rows"],
            eval_rows=held_out["rows"],
            labels=len(self.labels),
            fewest=(self.labels[fewest], int(per_label[fewest])),
            most=(self.labels[most], int(per_label[most])),
            train_source=source_of(recipe, "train"),
            eval_source=source_of(recipe, "eval"),
            truncated=train["truncated"] + held_out["truncated"],
            dropped_too_long=train["too_long"],
            dropped_empty=train["empty"],
            eval_dropped=held_out["empty"] + held_out["too_long"],
            eval_outside=held_out["outside"],
            tokens=train["tokens"],
            longest=max(train["longest"], held_out["longest"]),
        )

    def read_report(self, values: Mapping[str, Any]) -> LabelReport:
        """The report whose values are read from a file."""
        return LabelReport(**{**values, "fewest": tuple(values["fewest"]), "most": tuple(values["most"])})

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return numbered(self.labels)

    def _inside(self, part: Part, counts: Counter[str]) -> Iterator[Example]:
        """The rows that the head can have labels for; the others are counted."""
        for row in self.read(part):
            if is_outside(row, self.recipe.classify, self._numbers):
                counts["outside"] += 1
            else:
                yield row

    def _ids(self, rows: Sequence[Example], **how: Any) -> list[list[int]]:
        """Token ids of texts, at least one."""
        ids: list[list[int]] = self.tokenizer([row.text for row in rows], verbose=False, **how)["input_ids"]
        return ids

    def _fits(self, example: Example, ids: Sequence[int], counts: Counter[str]) -> bool:
        """Whether a text is kept; too long ones are counted. Raises DataError where they are refused."""
        counts["longest"] = max(counts["longest"], len(ids))
        if len(ids) <= self.max_length:
            return True
        way = self.recipe.data.too_long
        if way == "error":
            raise DataError(
                f"{example.place}: {len(ids)} tokens, more than {self.max_length}",
                cure='set data.too_long = "truncate"',
            )
        counts["too_long" if way == "drop" else "truncated"] += 1
        return way == "truncate"
