"""The recipe's [data] -> examples, and tokenised rows on disk. What other stages call.

Rows stream through: read, recognised, encoded, written as flat int32 arrays that are memory-mapped afterwards, so that
memory does not grow with the data. The arrays are cached by the content of files, tokenizer and settings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgetune.data.formats import Example
from edgetune.data.read import Split, content_hashes
from edgetune.data.report import Report
from edgetune.data.set_apart import set_apart
from edgetune.data.splits import PARTS, Part, find_source
from edgetune.data.task import TASKS, Encoder
from edgetune.errors import DataError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.hashes import hash_values
from edgetune.recipe import Recipe

MOST_ROWS = 100_000
"""Rows that are looked at before a run, where all would be but for their number."""
CACHE_VERSION = 5
SETTINGS = ("format", "columns", "system", "eval_fraction", "max_train_rows", "max_seq_len", "too_long", "loss_on")
"""Keys of [data] that decide the arrays."""
_Rows = TypeVar("_Rows", covariant=True)


@dataclass(frozen=True)
class Prepared(Generic[_Rows]):
    """Rows ready for training."""

    train: _Rows
    eval: _Rows
    report: Report
    labels: tuple[str, ...]
    """Those that are told apart, in the order of the logits; () where text is written."""
    max_length: int
    """Tokens of a row, at most."""


def prepare(recipe: Recipe, tokenizer: Any, *, cache: Path, max_length: int | None = None) -> Prepared[Any]:
    """The train and eval rows of a recipe, tokenised, from the cache folder where they are up to date.

    `max_length`: tokens of a row at most, see `longest_row`; data.max_seq_len without it. Raises DataError: unreadable
    rows with their place, no rows, no row that can be trained on, and what `check_labels` raises.
    """
    labels = check_labels(recipe)
    encoder = _encoder(recipe, tokenizer, labels, max_length)
    key = _cache_key(recipe, tokenizer, encoder)
    folder = cache / f"{encoder.cache_name}-{key[:16]}"
    if not (folder / "report.json").exists():
        with atomic_folder(folder) as temporary:
            _write(recipe, encoder, temporary)
    report = encoder.read_report(read_json(folder / "report.json"))
    train, held_out = (encoder.open(folder / part, key) for part in PARTS)
    return Prepared(train, held_out, report, labels, max_length or recipe.data.max_seq_len)


def longest_row(recipe: Recipe, base: Path, tokenizer: Any) -> int:
    """Tokens of a row at most, where the model in folder `base` reads it."""
    return TASKS[recipe.model.task].longest_row(recipe, base, tokenizer)


def check_labels(recipe: Recipe) -> tuple[str, ...]:
    """The labels of the training rows, sorted, once the rows and labels of all splits can be used; () without labels.

    Where there are labels, every row is read: what would stop a later stage stops here. Raises DataError: rows that
    cannot be read, with their place, fewer than two labels, an eval or test label that training lacks (but the one out
    of scope), a split without text or with nothing but rows out of scope, a label that the recipe names and no row has.
    """
    return TASKS[recipe.model.task].check_labels(recipe, partial(_first_examples, recipe))


def examples(recipe: Recipe, which: Split) -> Iterator[Example]:
    """The examples of a split. Test falls back to the eval rows, eval to those set apart from train.

    Raises DataError.
    """
    source = find_source(recipe.data, which)
    read = TASKS[recipe.model.task].reader(recipe, source)

    def every() -> Iterator[Example]:
        return (read(row) for row in source.rows())

    if source.part is None:
        yield from every()
    else:
        yield from set_apart(every, source.part, fraction=recipe.data.eval_fraction, source=source.name)


def training_rows(recipe: Recipe) -> Iterator[tuple[Mapping[str, Any], Example]]:
    """The values and the example of each row that is labelled for training, at most data.max_train_rows.

    Rows that would be set apart as eval rows are among them. Raises DataError.
    """
    source = find_source(recipe.data, "train")
    read = TASKS[recipe.model.task].reader(recipe, source)
    for row in itertools.islice(source.rows(), recipe.data.max_train_rows):
        yield row.values, read(row)


def no_rows(recipe: Recipe, which: Split) -> DataError:
    """Why `examples` gives nothing."""
    source = find_source(recipe.data, which)
    if source.part == "train":  # of no rows at all there would be no eval rows to set apart
        return DataError(
            f"{source.name}: all rows are alike, so none is left once eval rows are set apart",
            cure="name rows in data.eval",
        )
    return DataError(f"{source.name}: holds no rows")


def require_usable(
    recipe: Recipe, tokenizer: Any, *, labels: tuple[str, ...] = (), max_length: int | None = None
) -> None:
    """Raises DataError if no training row, or no eval row, could be used: all too long, or with nothing to learn.

    Reads as far as the first that can; where a row that is too long is an error, on to the first of those. `labels` are
    those that `check_labels` found, `max_length` as in `prepare`.
    """
    encoder = _encoder(recipe, tokenizer, labels, max_length)
    for part in PARTS:
        counts: Counter[str] = Counter()
        kept = encoder.kept(part, counts)
        if next(kept, None) is None:
            raise _nothing_left(recipe, encoder, part, counts)
        if recipe.data.too_long == "error":
            deque(itertools.islice(kept, MOST_ROWS), maxlen=0)


def _first_examples(recipe: Recipe, which: Split) -> Iterator[Example]:
    """The examples of a split; of train rows at most data.max_train_rows."""
    return itertools.islice(examples(recipe, which), recipe.data.max_train_rows if which == "train" else None)


def _encoder(recipe: Recipe, tokenizer: Any, labels: tuple[str, ...], max_length: int | None) -> Encoder:
    read = partial(_first_examples, recipe)
    return TASKS[recipe.model.task].encoder(recipe, tokenizer, read, labels, max_length or recipe.data.max_seq_len)


def _cache_key(recipe: Recipe, tokenizer: Any, encoder: Encoder) -> str:
    """Hash of all that decides the arrays: the sources' content, the tokenizer, the settings."""
    sources = [find_source(recipe.data, part) for part in PARTS]
    content = [(content_hashes(source.name, source.split), source.part) for source in sources]
    settings = {name: getattr(recipe.data, name) for name in SETTINGS}
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    told = (tokenizer.chat_template, tokenizer.special_tokens_map)
    return hash_values(CACHE_VERSION, content, settings, backend, *told, *encoder.settings)


def _write(recipe: Recipe, encoder: Encoder, folder: Path) -> None:
    """Encode both parts into `folder` and say what became of the rows."""
    counts = {part: Counter[str]() for part in PARTS}
    for part, seen in counts.items():
        written = encoder.write(encoder.kept(part, seen), folder / part)
        if not written:
            raise _nothing_left(recipe, encoder, part, seen)
        seen["rows"] = written
    write_json(folder / "report.json", dataclasses.asdict(encoder.report(counts, folder)))


def _nothing_left(recipe: Recipe, encoder: Encoder, part: Part, counts: Counter[str]) -> DataError:
    """Why no row of a part can be used."""
    return no_rows(recipe, "train") if part == "train" and not counts else encoder.nothing_left(part, counts)
