"""The recipe's [data] -> tokenised rows on disk, and the examples behind them. What train and evaluate call.

Rows stream through: read, recognised, encoded, written as flat int32 arrays that are memory-mapped afterwards, so that
memory does not grow with the data. The arrays are cached by the content of files, tokenizer and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgetune.data.chat import chat_notes, ensure_chat_template
from edgetune.data.encode import Encoded, encode_batch
from edgetune.data.files import Row
from edgetune.data.formats import Example, Format, columns_left_out, detect, to_example
from edgetune.data.labels import find_columns, to_labelled
from edgetune.data.read import Split, content_hashes, describe, find, is_hub_id, rows, splits
from edgetune.data.swap import Values
from edgetune.data.tokens import Tokens, open_tokens, write_tokens
from edgetune.errors import DataError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.hashes import hash_values
from edgetune.recipe import DataTable, Recipe

BATCH_ROWS = 256
NOTED_ROWS = 1000
"""Rows that are looked at for what the chat template leaves out of them."""
MOST_ROWS = 100_000
"""Rows that are looked at before a run, where all would be but for their number."""
CACHE_VERSION = 5


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: counts, and nothing left unsaid."""

    format: str
    format_reason: str
    train_rows: int
    eval_rows: int
    train_source: str
    eval_source: str
    """Where the rows come from, with the names of a folder's files."""
    dropped_too_long: int
    """Of the train rows, as the next two."""
    truncated: int
    dropped_untrainable: int
    """Rows whose answers are all empty, or in which no token counts in the loss."""
    eval_dropped: int
    """Eval rows left out for either reason."""
    tokens: int
    """Of the train rows."""
    trained_tokens: int
    longest: int
    """Tokens of the longest row read, also of one that was dropped."""
    unanswered: int
    """Rows, of both splits, whose last turns were left out because no answer follows them."""
    has_default_template: bool
    """The tokenizer has no chat template; EdgeTune's default is used."""
    chat_notes: tuple[str, ...]
    """What the chat template does with the rows that a user may not expect."""
    columns_left_out: tuple[str, ...]
    """Of the first train row, those that nothing is read from."""

    @property
    def summary(self) -> str:
        """The data in one line."""
        return (
            f"{self.train_rows:,} rows ({self.format}: {self.format_reason}), {self.tokens:,} tokens, "
            f"{self.trained_tokens:,} of them trained; {self.eval_rows:,} eval rows: {self.eval_source}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a user may not expect: rows left out or cut, a foreign template."""
        longest = f"the longest has {self.longest:,}"
        lines = (
            (
                self.dropped_too_long,
                f"{self.dropped_too_long:,} rows longer than max_seq_len left out; {longest} tokens",
            ),
            (self.truncated, f"{self.truncated:,} rows cut to max_seq_len; {longest} tokens"),
            (self.dropped_untrainable, f"{self.dropped_untrainable:,} rows with nothing to learn left out"),
            (self.eval_dropped, f"{self.eval_dropped:,} eval rows left out, too long or with nothing to learn"),
            (self.unanswered, f"of {self.unanswered:,} rows the turns after the last answer left out"),
            (self.columns_left_out, f"columns left out: {', '.join(self.columns_left_out)}"),
            (self.has_default_template, "the tokenizer has no chat template; EdgeTune's default is used"),
        )
        return (*(line for applies, line in lines if applies), *self.chat_notes)


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
    key = cache_key(recipe, tokenizer)
    folder = cache / f"data-{key[:16]}"
    if not (folder / "report.json").exists():
        with atomic_folder(folder) as temporary:
            _write(recipe, tokenizer, temporary, has_default_template)
    report = DataReport(**read_json(folder / "report.json"))
    return Prepared(open_tokens(folder / "train", key), open_tokens(folder / "eval", key), report)


def examples(recipe: Recipe, which: Split) -> Iterator[Example]:
    """The examples of a split as conversations. Test falls back to the eval rows, eval to those set apart from train.

    Raises DataError.
    """
    data = recipe.data
    source, split, part = _locate(data, which)
    read, _ = _reader(recipe, source, split)
    every = (read(row) for row in rows(source, split=split, columns=data.columns))
    if part is None:
        yield from every
        return
    threshold = _eval_threshold(recipe)
    for example, draw in _eval_draws(every):
        if (draw <= threshold) == (part == "eval"):
            yield example


def has_own_rows(recipe: Recipe, which: Split) -> bool:
    """Whether a split is a source of its own: named, or a file of its name in the training rows' folder."""
    named = {"train": recipe.data.train, "eval": recipe.data.eval, "test": recipe.data.test}[which]
    return named is not None or which in splits(recipe.data.train)


def is_trained_on(recipe: Recipe, which: Split) -> bool:
    """Whether a split that has_own_rows is the very file, or split, of the training rows."""
    source, split, _ = _locate(recipe.data, which)
    trained, trained_split, _ = _locate(recipe.data, "train")
    if is_hub_id(source) or is_hub_id(trained):
        return (source, split or "train") == (trained, trained_split or "train")
    return (find(source).resolve(), split or "train") == (find(trained).resolve(), trained_split or "train")


def no_rows(recipe: Recipe, which: Split) -> DataError:
    """Why `examples` gives nothing."""
    source, _, part = _locate(recipe.data, which)
    if part == "train":  # of no rows at all there would be no eval rows to set apart
        return _nothing_left(recipe.data, which, Counter())
    return DataError(f"{source}: holds no rows")


def require_usable(recipe: Recipe, tokenizer: Any) -> None:
    """Raises DataError if no training row, or no eval row, could be used: all too long, or with nothing to learn.

    Reads as far as the first that can; where a row that is too long is an error, on to the first of those.
    """
    ensure_chat_template(tokenizer)
    for which, stream in (("train", _train_examples(recipe)), ("eval", examples(recipe, "eval"))):
        counts: Counter[str] = Counter()
        kept = _kept(stream, tokenizer, recipe.data, counts)
        if next(kept, None) is None:
            raise _nothing_left(recipe.data, which, counts)
        if recipe.data.too_long == "error":
            deque(itertools.islice(kept, MOST_ROWS), maxlen=0)


def require_each_kind(recipe: Recipe, which: Split, tokenizer: Any) -> None:
    """Raises DataError if a row cannot be read, or the first of its kind cannot be encoded.

    A kind is what can make a chat template refuse a row: which roles follow which, with tools, calls of them, other
    keys, or nothing said. So all rows are looked at, and few of them are rendered.
    """
    ensure_chat_template(tokenizer)
    every = (example for _, example in training_rows(recipe)) if which == "train" else examples(recipe, which)
    seen = set()
    for example in itertools.islice(every, MOST_ROWS):
        kind = _kind(example)
        if kind not in seen:
            seen.add(kind)
            encode_batch([example], tokenizer, loss_on=recipe.data.loss_on)


def _kind(example: Example) -> tuple[bool, bool, frozenset[tuple[Any, ...]]]:
    messages = example.messages
    before = ("", *(message.role for message in messages))
    held = {
        (role, message.role, bool(message.content.strip()), _keys(message.more))
        for role, message in zip(before, messages, strict=False)
    }
    return bool(messages), bool(example.tools_json), frozenset(held)


def _keys(more: str) -> tuple[str, ...]:
    """The keys of a message that hold something, and whether it has several calls."""
    values = json.loads(more) if more else {}
    several = ("",) if len(values.get("tool_calls") or ()) > 1 else ()
    return (*sorted(key for key, value in values.items() if value), *several)


def training_rows(recipe: Recipe) -> Iterator[tuple[Mapping[str, Any], Example]]:
    """The values and the example of each row that is labelled for training, at most data.max_train_rows.

    Rows that would be set apart as eval rows are among them. Raises DataError.
    """
    data = recipe.data
    source, split, _ = _locate(data, "train")
    read, _ = _reader(recipe, source, split)
    for row in itertools.islice(rows(source, split=split, columns=data.columns), data.max_train_rows):
        yield row.values, read(row)


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


def source_of(recipe: Recipe, which: Split) -> str:
    """Where the rows of a split come from, for a report."""
    source, split, part = _locate(recipe.data, which)
    return f"{recipe.data.eval_fraction:.0%} of {source}" if part == "eval" else describe(source, split)


def sources(recipe: Recipe) -> tuple[str, str]:
    """Where the train and the eval rows come from, for a report."""
    return source_of(recipe, "train"), source_of(recipe, "eval")


def columns_of(recipe: Recipe) -> str:
    """Which columns a classifier's training rows are read from."""
    source, split, _ = _locate(recipe.data, "train")
    return _reader(recipe, source, split)[1]


def _reader(recipe: Recipe, source: str, split: Split | None) -> tuple[Callable[[Row], Example], str]:
    """How rows of a source become examples, and what was recognised. Raises DataError."""
    data = recipe.data
    if recipe.is_classifier:
        text, label = find_columns(_first_row(data, source, split))
        read = partial(to_labelled, columns=(text, label), table=recipe.classify)
        return read, f"text in {text!r}, label in {label!r}"
    form, reason = _format_of(data, source, split)
    return partial(to_example, form=form, system=data.system), f"{form}: {reason}"


def _first_row(data: DataTable, source: str, split: Split | None) -> Row:
    first = next(rows(source, split=split, columns=data.columns), None)
    if first is None:
        raise DataError(f"{source}: holds no rows")
    return first


def left_out(recipe: Recipe) -> tuple[str, ...]:
    """Columns of the first train row that nothing of a conversation or text is read from. Raises DataError."""
    source, split, _ = _locate(recipe.data, "train")
    form, _ = _format_of(recipe.data, source, split)
    return columns_left_out(_first_row(recipe.data, source, split), form)


def _format_of(data: DataTable, source: str, split: Split | None) -> tuple[Format, str]:
    if data.format != "auto":
        return data.format, "set in the recipe"
    return detect(_first_row(data, source, split))


NEVER = 2.0
"""What a row draws that must not become an eval row."""


def _eval_draws(every: Iterable[Example]) -> Iterator[tuple[Example, float]]:
    """Each example with a number in (0, 1] that depends on its content alone: the same rows are set apart in every run.

    The first row of each label draws NEVER, as do its copies, so that training has every label.
    """
    seen: set[str] = set()
    kept: set[float] = set()
    for example in every:
        content = json.dumps(_said(example) or example.text)
        draw = (int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) + 1) / 2**64
        if not seen.issuperset(example.labels) and (example.text or "").strip():
            seen.update(example.labels)
            kept.add(draw)
        yield example, NEVER if draw in kept else draw


def _said(example: Example) -> list[Any]:
    """What identifies a conversation."""
    turns: list[Any] = [
        (turn.role, turn.content, turn.more) if turn.more else (turn.role, turn.content) for turn in example.messages
    ]
    return [*turns, example.tools_json] if example.tools_json else turns


def _eval_threshold(recipe: Recipe) -> float:
    """Rows that draw at most this are eval rows: eval_fraction, or the least draw where no row would be one."""
    data = recipe.data
    read, _ = _reader(recipe, data.train, None)
    least, count = NEVER, 0
    for _, draw in _eval_draws(read(row) for row in rows(data.train, columns=data.columns)):
        count += 1
        least = min(least, draw)
        if least <= data.eval_fraction and count > 1:
            return data.eval_fraction
    if not count:
        raise DataError(f"{data.train}: holds no rows")
    if count < 2 or least == NEVER:
        what = "one row" if count < 2 else "one row a label"
        raise DataError(f"{data.train}: {what} cannot be split into train and eval rows", cure="name rows in data.eval")
    return least


def cache_key(recipe: Recipe, tokenizer: Any, *more: Any) -> str:
    """Hash of all that decides the arrays: the sources' content, the tokenizer, the settings, and `more`."""
    data = recipe.data
    content = []
    parts: tuple[Split, ...] = ("train", "eval")
    for which in parts:
        source, split, part = _locate(data, which)
        content.append((content_hashes(source, split), part))
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
    if data.swapped_copies:
        more = (*more, data.swapped_copies, recipe.train.seed)
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    if recipe.is_classifier:
        table = recipe.classify
        more = (*more, table.multi_label, table.label_separator, table.out_of_scope_label)
    told = (tokenizer.chat_template, tokenizer.special_tokens_map)
    return hash_values(CACHE_VERSION, content, settings, backend, *told, *more)


def _write(recipe: Recipe, tokenizer: Any, folder: Path, has_default_template: bool) -> None:
    """Encode both splits into `folder` and say what became of the rows."""
    data = recipe.data
    counts: Counter[str] = Counter()
    eval_counts: Counter[str] = Counter()
    train = _train_examples(recipe)
    kept = {
        "train": write_tokens(_kept(train, tokenizer, data, counts), folder / "train"),
        "eval": write_tokens(_kept(examples(recipe, "eval"), tokenizer, data, eval_counts), folder / "eval"),
    }
    for which, seen in (("train", counts), ("eval", eval_counts)):
        if not kept[which]:
            raise _nothing_left(data, which, seen)
    train_source, train_split, _ = _locate(data, "train")
    read_from, eval_from = sources(recipe)
    form, reason = _format_of(data, train_source, train_split)
    noted = itertools.islice(examples(recipe, "train"), NOTED_ROWS)
    report = DataReport(
        format=form,
        format_reason=reason,
        train_rows=kept["train"],
        eval_rows=kept["eval"],
        train_source=read_from,
        eval_source=eval_from,
        dropped_too_long=counts["too_long"],
        truncated=counts["truncated"],
        dropped_untrainable=counts["untrainable"],
        eval_dropped=eval_counts["too_long"] + eval_counts["untrainable"],
        tokens=counts["tokens"],
        trained_tokens=counts["trained_tokens"],
        longest=counts["longest"],
        unanswered=counts["unanswered"] + eval_counts["unanswered"],
        has_default_template=has_default_template,
        chat_notes=chat_notes(tokenizer, noted) if form != "text" else (),
        columns_left_out=left_out(recipe),
    )
    write_json(folder / "report.json", dataclasses.asdict(report))


def _train_examples(recipe: Recipe) -> Iterator[Example]:
    """The train rows, each followed by its copies with swapped values where the recipe asks for them."""
    data, seed = recipe.data, recipe.train.seed
    if not data.swapped_copies:
        yield from itertools.islice(examples(recipe, "train"), data.max_train_rows)
        return

    def read() -> Iterator[Example]:
        return itertools.islice(examples(recipe, "train"), data.max_train_rows)

    values = Values(read, seed=seed)
    for example in read():
        yield example
        yield from values.copies(example, data.swapped_copies, seed=seed)


def _kept(stream: Iterator[Example], tokenizer: Any, data: DataTable, counts: Counter[str]) -> Iterator[Encoded]:
    """The rows that are trained or evaluated on; all others are counted."""
    while batch := list(itertools.islice(stream, BATCH_ROWS)):
        encoded = encode_batch(batch, tokenizer, loss_on=data.loss_on)
        for example, whole in zip(batch, encoded, strict=True):
            counts["unanswered"] += bool(example.unanswered)
            row = _fit(whole, data, counts, is_empty=says_nothing(example, data))
            if row is not None:
                yield row


def _fit(row: Encoded, data: DataTable, counts: Counter[str], *, is_empty: bool) -> Encoded | None:
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
    kept = row.cut(data.max_seq_len)
    if is_empty or kept.trained_tokens == 0:
        counts["untrainable"] += 1
        return None
    counts["truncated"] += kept is not row
    counts["tokens"] += len(kept.input_ids)
    counts["trained_tokens"] += kept.trained_tokens
    return kept


def says_nothing(example: Example, data: DataTable) -> bool:
    """Whether all that would be learned is to say nothing."""
    if not example.messages:
        return not (example.text or "").strip()
    answers = (message for message in example.messages if message.role == "assistant")
    return data.loss_on == "completion" and not any(answer.more or answer.content.strip() for answer in answers)


def _nothing_left(data: DataTable, which: str, counts: Counter[str]) -> DataError:
    """Why no row of a split can be used."""
    if which == "train" and not counts:
        what = f"{data.train}: all rows are alike, so none is left once eval rows are set apart"
        return DataError(what, cure="name rows in data.eval")
    source = data.train if which == "train" else data.eval or data.train
    what = "no row can be trained on" if which == "train" else "no eval row can be used"
    cure = "fill the answers, or set data.loss_on"
    if counts["too_long"] or counts["longest"] > data.max_seq_len:
        cure = f"raise data.max_seq_len; the longest row has {counts['longest']} tokens"
    return DataError(
        f"{source}: {what}: {counts['too_long']} longer than {data.max_seq_len} tokens, "
        f"{counts['untrainable']} without a token to learn",
        cure=cure,
    )
