"""Texts with labels: rows -> examples -> token ids and targets on disk. The data flow of classifiers.

Rows come from the same sources as conversations do (data/read.py), or from one folder of .txt files a label. The
labels are those of the training rows, sorted, or those of the head that lora.init_from goes on from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgetune.data.encode import Encoded, check_tokens
from edgetune.data.formats import Example
from edgetune.data.labels import as_targets, check_named, is_outside, label_numbers, numbered
from edgetune.data.prepare import cache_key, columns_of, examples, source_of, sources
from edgetune.data.tokens import Tokens, open_tokens, write_tokens
from edgetune.errors import DataError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.model.classifier import SPEC, read_spec
from edgetune.recipe import ClassifyTable, DataTable, Recipe

BATCH_ROWS = 1024
Part = Literal["train", "eval"]
PARTS: tuple[Part, ...] = ("train", "eval")


@dataclass(frozen=True)
class LabelReport:
    """What became of the rows of a classifier's data."""

    columns: str
    """Which columns were read, and why."""
    train_rows: int
    eval_rows: int
    labels: int
    fewest: tuple[str, int]
    """The label with the fewest training rows, and how many."""
    most: tuple[str, int]
    train_source: str
    eval_source: str
    truncated: int
    """Of the training and eval rows."""
    dropped_too_long: int
    """Of the training rows, as the next."""
    dropped_empty: int
    eval_dropped: int
    eval_outside: int
    """Eval rows out of scope for which the head has no label."""
    tokens: int
    longest: int
    """Tokens of the longest text read, training or eval, before it was cut."""

    @property
    def summary(self) -> str:
        """The data in one line."""
        return (
            f"{self.train_rows:,} texts ({self.columns}), {self.labels:,} labels with {self.fewest[1]:,} to "
            f"{self.most[1]:,} rows; {self.eval_rows:,} eval rows: {self.eval_source}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a user may not expect."""
        lines = (
            (self.truncated, f"{self.truncated:,} texts cut to the longest allowed; the longest has {self.longest:,}"),
            (
                self.dropped_too_long,
                f"{self.dropped_too_long:,} texts too long left out; the longest has {self.longest:,}",
            ),
            (self.dropped_empty, f"{self.dropped_empty:,} rows without text left out"),
            (self.eval_dropped, f"{self.eval_dropped:,} eval rows without text, or too long, left out"),
            (self.eval_outside, f"{self.eval_outside:,} eval rows out of scope: no part of the loss"),
            (self.fewest[1] < 5, f"label {self.fewest[0]!r} has only {self.fewest[1]} training rows"),
        )
        return tuple(line for applies, line in lines if applies)


@dataclass(frozen=True)
class LabelledTokens:
    """Tokenised texts with their targets, memory-mapped. len() rows."""

    tokens: Tokens
    targets: np.ndarray
    """int64 (rows,): the number of the label; of multi-label rows uint8 (rows, ceil(labels / 8)), bits of a set."""
    labels: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 (rows,)."""
        return self.tokens.lengths

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows and targets."""
        return self.tokens.fingerprint

    def target(self, rows: Sequence[int]) -> Tensor:
        """int64 (rows,), or float32 (rows, labels) of zeros and ones."""
        chosen = np.asarray(self.targets[list(rows)])
        if chosen.ndim == 1:
            return torch.from_numpy(chosen)
        return torch.from_numpy(np.unpackbits(chosen, axis=1, count=self.labels).astype(np.float32))

    def counts(self) -> np.ndarray:
        """Rows of each label, int64 (labels,)."""
        if self.targets.ndim == 1:
            return np.bincount(self.targets, minlength=self.labels)
        total = np.zeros(self.labels, np.int64)
        for start in range(0, len(self), BATCH_ROWS):
            total += self.target(range(start, min(start + BATCH_ROWS, len(self)))).sum(0).long().numpy()
        return total


@dataclass(frozen=True)
class PreparedLabels:
    """Rows ready for training a classifier."""

    train: LabelledTokens
    eval: LabelledTokens
    labels: tuple[str, ...]
    report: LabelReport


def check_labels(recipe: Recipe) -> tuple[str, ...]:
    """The labels of the training rows, sorted, once the rows and labels of all splits can be used.

    Reads every row; what would stop a later stage stops here. Raises DataError: unreadable rows with their place, fewer
    than two labels, an eval or test label that training does not have (but the one out of scope), a split without text
    or with nothing but rows out of scope, a label that the recipe names and no row has.
    """
    table = recipe.classify
    labels = find_labels(_split(recipe, "train"), recipe.data, known=_labels_gone_on_from(recipe))
    check_named(table, "positive_label", labels)
    numbers, outside = numbered(labels), 0
    splits: tuple[Literal["eval", "test"], ...] = ("eval", "test")
    for split in splits:
        found = [_is_scored(example, table, numbers) for example in examples(recipe, split) if _has_text(example)]
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


def find_labels(rows: Iterable[Example], data: DataTable, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
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


def prepare_labelled(recipe: Recipe, tokenizer: Any, *, max_length: int, cache: Path) -> PreparedLabels:
    """Train and eval rows of a classifier's recipe, tokenised to at most max_length, from the cache where up to date.

    Eval rows out of scope are left out where no training row is: they have no part in the loss, but set the threshold.
    Raises DataError as check_labels does, and for rows that are all too long.
    """
    labels = check_labels(recipe)
    told = (labels,) if head_gone_on_from(recipe, labels) else ()
    key = cache_key(recipe, tokenizer, max_length, *told)
    folder = cache / f"labelled-{key[:16]}"
    if not (folder / "report.json").exists():
        with atomic_folder(folder) as temporary:
            _write(recipe, tokenizer, max_length, labels, temporary)
    values = read_json(folder / "report.json")
    report = LabelReport(**{**values, "fewest": tuple(values["fewest"]), "most": tuple(values["most"])})
    train, held_out = (_open(folder / part, key, len(labels)) for part in ("train", "eval"))
    return PreparedLabels(train, held_out, labels, report)


def _write(recipe: Recipe, tokenizer: Any, max_length: int, names: Sequence[str], folder: Path) -> None:
    """Tokenise both splits into `folder` and say what became of the rows."""
    counts = {part: Counter[str]() for part in PARTS}
    kept, numbers = {}, numbered(names)
    for part in PARTS:
        rows = _inside(_split(recipe, part), recipe.classify, numbers, counts[part])
        batches = _kept(rows, recipe, tokenizer, max_length, counts[part])
        kept[part] = _write_part(batches, folder / part, names, is_set=recipe.classify.multi_label)
        if not kept[part]:
            raise _nothing_left(recipe, part, counts[part])
    per_label = _open(folder / "train", "", len(names)).counts()
    fewest, most = int(per_label.argmin()), int(per_label.argmax())
    train_source, eval_source = sources(recipe)
    report = LabelReport(
        columns=columns_of(recipe),
        train_rows=kept["train"],
        eval_rows=kept["eval"],
        labels=len(names),
        fewest=(names[fewest], int(per_label[fewest])),
        most=(names[most], int(per_label[most])),
        train_source=train_source,
        eval_source=eval_source,
        truncated=counts["train"]["truncated"] + counts["eval"]["truncated"],
        dropped_too_long=counts["train"]["too_long"],
        dropped_empty=counts["train"]["empty"],
        eval_dropped=counts["eval"]["empty"] + counts["eval"]["too_long"],
        eval_outside=counts["eval"]["outside"],
        tokens=counts["train"]["tokens"],
        longest=max(counts[part]["longest"] for part in PARTS),
    )
    write_json(folder / "report.json", dataclasses.asdict(report))


def require_fitting(recipe: Recipe, labels: Sequence[str], tokenizer: Any, *, max_length: int) -> None:
    """Raises DataError if no training row, or no eval row, is as short as max_length tokens and may not be cut.

    Reads as far as the first that is.
    """
    numbers = numbered(labels)
    for part in PARTS:
        counts: Counter[str] = Counter()
        rows = _inside(_split(recipe, part), recipe.classify, numbers, counts)
        if next(_kept(rows, recipe, tokenizer, max_length, counts), None) is None:
            raise _nothing_left(recipe, part, counts)


def _nothing_left(recipe: Recipe, part: Part, counts: Counter[str]) -> DataError:
    return DataError(
        f"{source_of(recipe, part)}: no {part} row can be used, {counts['too_long']:,} are too long",
        cure='raise data.max_seq_len, or set data.too_long = "truncate"',
    )


def _split(recipe: Recipe, part: Part) -> Iterator[Example]:
    return itertools.islice(examples(recipe, part), recipe.data.max_train_rows if part == "train" else None)


def _inside(
    rows: Iterable[Example], table: ClassifyTable, numbers: Mapping[str, int], counts: Counter[str]
) -> Iterator[Example]:
    """The rows that the head can have labels for; the others are counted."""
    for row in rows:
        if is_outside(row, table, numbers):
            counts["outside"] += 1
        else:
            yield row


def _write_part(
    batches: Iterator[tuple[list[Example], list[Encoded]]], path: Path, names: Sequence[str], *, is_set: bool
) -> int:
    """Token ids and targets of one split; how many rows they are."""
    targets: list[np.ndarray] = []
    numbers = numbered(names)

    def rows() -> Iterator[Encoded]:
        for part, encoded in batches:
            found = as_targets([label_numbers(row, numbers) for row in part], len(names), multi_label=is_set)
            targets.append(np.packbits(found, axis=1) if is_set else found)
            yield from encoded

    kept = write_tokens(rows(), path)
    if kept:
        np.save(path.with_name(f"{path.name}-targets.npy"), np.concatenate(targets))
    return kept


def _kept(
    stream: Iterator[Example], recipe: Recipe, tokenizer: Any, max_length: int, counts: Counter[str]
) -> Iterator[tuple[list[Example], list[Encoded]]]:
    """Batches of examples with their token ids; rows without text, and too long ones, are counted."""
    while batch := list(itertools.islice(stream, BATCH_ROWS)):
        filled = [example for example in batch if _has_text(example)]
        counts["empty"] += len(batch) - len(filled)
        ids = tokenizer([example.text for example in filled], verbose=False)["input_ids"] if filled else []
        pairs = [pair for pair in zip(filled, ids, strict=True) if _fits(*pair, recipe, max_length, counts)]
        kept, lists = [example for example, _ in pairs], [list(whole) for _, whole in pairs]
        if any(len(whole) > max_length for whole in lists):
            texts = [example.text for example in kept]
            lists = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)["input_ids"]
        for example, whole in zip(kept, lists, strict=True):
            check_tokens(whole, tokenizer, example.place)
        counts["tokens"] += sum(map(len, lists))
        if kept:
            yield kept, [Encoded(ids, ids, example.place) for example, ids in zip(kept, lists, strict=True)]


def _fits(example: Example, ids: Sequence[int], recipe: Recipe, max_length: int, counts: Counter[str]) -> bool:
    """Whether a text is kept; too long ones are cut, left out or refused as data.too_long says, and counted."""
    counts["longest"] = max(counts["longest"], len(ids))
    if len(ids) <= max_length:
        return True
    if recipe.data.too_long == "error":
        raise DataError(
            f"{example.place}: {len(ids)} tokens, more than {max_length}", cure='set data.too_long = "truncate"'
        )
    counts["too_long" if recipe.data.too_long == "drop" else "truncated"] += 1
    return recipe.data.too_long == "truncate"


def _open(path: Path, key: str, labels: int) -> LabelledTokens:
    targets = np.load(path.with_name(f"{path.name}-targets.npy"), mmap_mode="r")
    return LabelledTokens(open_tokens(path, key), targets, labels)
