"""The recipe's [data] -> tokenised rows on disk, and the examples behind them. What train and evaluate call.

Rows stream through: read, recognised, encoded, written as flat int32 arrays that are memory-mapped afterwards, so that
memory does not grow with the data. The arrays are cached by the content of files, tokenizer and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgetune.data.chat import ensure_chat_template
from edgetune.data.encode import NOT_TRAINED, Encoded, encode_batch
from edgetune.data.formats import Example, Format, detect, to_example
from edgetune.data.read import Split, content_files, hub_fingerprint, is_hub_id, rows, splits
from edgetune.errors import DataError
from edgetune.recipe import DataTable, Recipe
from edgetune.run_dir import atomic_folder, hash_file, hash_values, read_json, write_json

BATCH_ROWS = 256
CACHE_VERSION = 1


@dataclass(frozen=True)
class Tokens:
    """Tokenised rows, read from disk as they are asked for. len() rows; each is an Encoded."""

    ids: np.ndarray
    """int32 (all tokens,)."""
    labels: np.ndarray
    """int32 (all tokens,), -100 where the loss does not count."""
    offsets: np.ndarray
    """int64 (rows + 1,)."""
    fingerprint: str
    """Equal for equal rows."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, stop = self.offsets[index], self.offsets[index + 1]
        return Encoded(self.ids[start:stop].tolist(), self.labels[start:stop].tolist(), f"row {index}")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (rows,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: counts, and nothing left unsaid."""

    format: str
    format_reason: str
    train_rows: int
    eval_rows: int
    eval_source: str
    """Where the eval rows come from."""
    dropped_too_long: int
    truncated: int
    dropped_untrainable: int
    """Rows in which no token counts in the loss, e.g. empty answers."""
    tokens: int
    """Of the train rows."""
    trained_tokens: int
    longest: int
    """Tokens of the longest row read, also of one that was dropped."""
    has_default_template: bool
    """The tokenizer has no chat template; EdgeTune's default is used."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready for training."""

    train: Tokens
    eval: Tokens
    report: DataReport


def prepare(recipe: Recipe, tokenizer: Any, *, cache: Path) -> Prepared:
    """The train and eval rows of a recipe, tokenised, from the cache folder where they are up to date.

    Raises DataError: unreadable rows with their place, no rows, no row that can be trained on.
    """
    has_default_template = ensure_chat_template(tokenizer)
    key = _cache_key(recipe, tokenizer)
    folder = cache / f"data-{key[:16]}"
    if not (folder / "report.json").exists():
        with atomic_folder(folder) as temporary:
            _write(recipe, tokenizer, temporary, has_default_template)
    report = DataReport(**read_json(folder / "report.json"))
    return Prepared(_open(folder, "train", key), _open(folder, "eval", key), report)


def examples(recipe: Recipe, which: Split) -> Iterator[Example]:
    """The examples of a split as conversations. Test falls back to the eval rows, eval to those set apart from train.

    Raises DataError.
    """
    data = recipe.data
    source, split, part = _locate(data, which)
    form, _ = _format_of(data, source, split)
    threshold = _eval_threshold(data) if part else 0.0
    for row in rows(source, split=split, columns=data.columns):
        example = to_example(row, form, system=data.system)
        if part is None or (_eval_draw(example) <= threshold) == (part == "eval"):
            yield example


def _locate(data: DataTable, which: Split) -> tuple[str, Split | None, Literal["eval", "train"] | None]:
    """Source, its split, and which part of it where eval rows are set apart from train rows."""
    named = {"eval": data.eval, "test": data.test}.get(which)
    if named is not None:
        own = splits(named)
        return named, (which if which in own else None), None
    if which == "train":
        return data.train, None, None if _has_eval(data) else "train"
    if which in splits(data.train):
        return data.train, which, None
    if which == "test":
        return _locate(data, "eval")
    return data.train, None, "eval"


def _has_eval(data: DataTable) -> bool:
    return data.eval is not None or "eval" in splits(data.train)


def _format_of(data: DataTable, source: str, split: Split | None) -> tuple[Format, str]:
    first = next(rows(source, split=split, columns=data.columns), None)
    if first is None:
        raise DataError(f"{source}: holds no rows")
    if data.format == "auto":
        return detect(first)
    return data.format, "set in the recipe"


def _eval_draw(example: Example) -> float:
    """A number in (0, 1] that depends on the example's content alone: the same rows are set apart in every run."""
    content = json.dumps([(message.role, message.content) for message in example.messages] or example.text)
    return (int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) + 1) / 2**64


def _eval_threshold(data: DataTable) -> float:
    """Rows that draw at most this are eval rows: eval_fraction, or the least draw where no row would be one."""
    form, _ = _format_of(data, data.train, None)
    least, count = 1.0, 0
    for row in rows(data.train, columns=data.columns):
        count += 1
        least = min(least, _eval_draw(to_example(row, form, system=data.system)))
        if least <= data.eval_fraction and count > 1:
            return data.eval_fraction
    if count < 2:
        raise DataError(
            f"{data.train}: one row cannot be split into train and eval rows", cure="name rows in data.eval"
        )
    return least


def _cache_key(recipe: Recipe, tokenizer: Any) -> str:
    """Hash of all that decides the arrays: the sources' content, the tokenizer, the settings."""
    data = recipe.data
    content = []
    parts: tuple[Split, ...] = ("train", "eval")
    for which in parts:
        source, split, part = _locate(data, which)
        identity = (
            [hub_fingerprint(source, split)]
            if is_hub_id(source)
            else [hash_file(path) for path in content_files(source, split)]
        )
        content.append((identity, part))
    settings = {
        name: getattr(data, name)
        for name in (
            "format",
            "columns",
            "system",
            "eval_fraction",
            "max_train_rows",
            "max_seq_len",
            "too_long",
            "loss_on",
        )
    }
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return hash_values(CACHE_VERSION, content, settings, backend, tokenizer.chat_template, tokenizer.eos_token)


def _write(recipe: Recipe, tokenizer: Any, folder: Path, has_default_template: bool) -> None:
    """Encode both splits into `folder` and say what became of the rows."""
    data = recipe.data
    counts: Counter[str] = Counter()
    train = itertools.islice(examples(recipe, "train"), data.max_train_rows)
    kept = {
        "train": _encode_to_disk(train, tokenizer, data, folder / "train", counts),
        "eval": _encode_to_disk(examples(recipe, "eval"), tokenizer, data, folder / "eval", Counter()),
    }
    if not kept["train"]:
        raise DataError(_why_nothing_is_left(data, counts), cure=_cure(counts))
    if not kept["eval"]:
        raise DataError(
            f"{data.eval or data.train}: no eval row can be used",
            cure="give rows in data.eval or raise data.max_seq_len",
        )
    form, reason = _format_of(data, *_locate(data, "train")[:2])
    source, split, part = _locate(data, "eval")
    report = DataReport(
        format=form,
        format_reason=reason,
        train_rows=kept["train"],
        eval_rows=kept["eval"],
        eval_source=f"{data.eval_fraction:.0%} of {source}" if part else f"{source}" + (f" ({split})" if split else ""),
        dropped_too_long=counts["too_long"],
        truncated=counts["truncated"],
        dropped_untrainable=counts["untrainable"],
        tokens=counts["tokens"],
        trained_tokens=counts["trained_tokens"],
        longest=counts["longest"],
        has_default_template=has_default_template,
    )
    write_json(folder / "report.json", dataclasses.asdict(report))


def _encode_to_disk(
    stream: Iterator[Example], tokenizer: Any, data: DataTable, path: Path, counts: Counter[str]
) -> int:
    """Write <path>-ids.npy, -labels.npy, -offsets.npy; how many rows were kept."""
    offsets = [0]
    with (
        path.with_name(f"{path.name}-ids.bin").open("wb") as ids,
        path.with_name(f"{path.name}-labels.bin").open("wb") as labels,
    ):
        while batch := list(itertools.islice(stream, BATCH_ROWS)):
            for whole in encode_batch(batch, tokenizer, loss_on=data.loss_on):
                row = _fit(whole, data, counts)
                if row is not None:
                    ids.write(np.asarray(row.input_ids, dtype=np.int32).tobytes())
                    labels.write(np.asarray(row.labels, dtype=np.int32).tobytes())
                    offsets.append(offsets[-1] + len(row.input_ids))
    np.save(path.with_name(f"{path.name}-offsets.npy"), np.asarray(offsets, dtype=np.int64))
    return len(offsets) - 1


def _fit(row: Encoded, data: DataTable, counts: Counter[str]) -> Encoded | None:
    """The row as it is trained on, or None if it is left out; either way it is counted."""
    counts["longest"] = max(counts["longest"], len(row.input_ids))
    if len(row.input_ids) > data.max_seq_len:
        if data.too_long == "error":
            raise DataError(
                f"{row.place}: {len(row.input_ids)} tokens, more than data.max_seq_len = {data.max_seq_len}",
                cure='raise it, or set data.too_long = "drop" or "truncate"',
            )
        if data.too_long == "drop":
            counts["too_long"] += 1
            return None
        counts["truncated"] += 1
        row = row.cut(data.max_seq_len)
    trained = row.trained_tokens
    if trained == 0 or _has_empty_answer(row):
        counts["untrainable"] += 1
        return None
    counts["tokens"] += len(row.input_ids)
    counts["trained_tokens"] += trained
    return row


def _has_empty_answer(row: Encoded) -> bool:
    """Whether all that would be learned is to end the turn at once."""
    return len(row.labels) > 1 and sum(label != NOT_TRAINED for label in row.labels) <= 1


def _why_nothing_is_left(data: DataTable, counts: Counter[str]) -> str:
    if not counts:
        return f"{data.train}: holds no rows"
    return (
        f"{data.train}: no row can be trained on: {counts['too_long']} longer than {data.max_seq_len} tokens, "
        f"{counts['untrainable']} without a token to learn"
    )


def _cure(counts: Counter[str]) -> str:
    if counts["too_long"]:
        return f"raise data.max_seq_len; the longest row has {counts['longest']} tokens"
    return "fill the answers, or set data.loss_on"


def _open(folder: Path, name: str, key: str) -> Tokens:
    offsets = np.load(folder / f"{name}-offsets.npy")
    arrays = []
    for part in ("ids", "labels"):
        path = folder / f"{name}-{part}.bin"
        is_empty = offsets[-1] == 0
        arrays.append(np.empty(0, np.int32) if is_empty else np.memmap(path, dtype=np.int32, mode="r"))
    return Tokens(arrays[0], arrays[1], offsets, hash_values(key, name))
