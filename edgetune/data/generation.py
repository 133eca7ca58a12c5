"""Conversations and plain texts for a decoder: rows -> examples -> token ids, and what became of the rows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from edgetune.data.chat import chat_notes, ensure_chat_template
from edgetune.data.encode import Encoded, encode_batch, in_batches
from edgetune.data.files import Row
from edgetune.data.formats import Example, Format, columns_left_out, detect, to_example
from edgetune.data.report import DataReport
from edgetune.data.splits import Part, Read, Source, find_source, source_of
from edgetune.data.swap import Values
from edgetune.data.tokens import Tokens, open_tokens, write_tokens
from edgetune.errors import DataError
from edgetune.recipe import DataTable, Recipe

BATCH_ROWS = 256
NOTED_ROWS = 1000
"""Rows that are looked at for what the chat template leaves out of them."""


def reader(recipe: Recipe, source: Source) -> Callable[[Row], Example]:
    """How rows of a source become conversations or texts. Raises DataError."""
    form, _ = _format_of(source)
    return partial(to_example, form=form, system=recipe.data.system)


def as_row(example: Example, _: Recipe) -> dict[str, Any]:
    """An example as a row that reads back as it is, whatever the columns of its own file are called."""
    if not example.messages:
        return {"text": example.text}
    return {"messages": example.turns, **({"tools": example.tools} if example.tools else {})}


def check_labels(_recipe: Recipe, _read: Read) -> tuple[str, ...]:
    """None: text is written."""
    return ()


def refuse_other_labels(_rows: Iterable[Example], _labels: Sequence[str], _recipe: Recipe) -> None:
    """Nothing: rows have no labels."""


def longest_row(recipe: Recipe, _base: Path, _tokenizer: Any) -> int:
    """Tokens of a row that is trained on, at most."""
    return recipe.data.max_seq_len


def encoder(recipe: Recipe, tokenizer: Any, read: Read, _labels: Sequence[str], _max_length: int) -> Encoder:
    """What makes token ids of the recipe's examples. Raises DataError if the tokenizer can render no conversation."""
    return Encoder(recipe, tokenizer, read, has_default_template=ensure_chat_template(tokenizer))


def left_out(recipe: Recipe) -> tuple[str, ...]:
    """Columns of the first train row that nothing of a conversation or text is read from. Raises DataError."""
    source = find_source(recipe.data, "train")
    return columns_left_out(source.first(), _format_of(source)[0])


def says_nothing(example: Example, data: DataTable) -> bool:
    """Whether all that would be learned is to say nothing."""
    if not example.messages:
        return not (example.text or "").strip()
    answers = (message for message in example.messages if message.role == "assistant")
    return data.loss_on == "completion" and not any(answer.more or answer.content.strip() for answer in answers)


def _format_of(source: Source) -> tuple[Format, str]:
    """The format of a source's rows, and what told it."""
    if source.data.format != "auto":
        return source.data.format, "set in the recipe"
    return detect(source.first())


@dataclass(frozen=True)
class Encoder:
    """Examples as token ids, those learned marked; rows too long, or with nothing to learn, are left out or cut."""

    recipe: Recipe
    tokenizer: Any
    read: Read
    has_default_template: bool
    cache_name: ClassVar[str] = "data"

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides the arrays beside source, tokenizer and the common keys of [data]."""
        copies = self.recipe.data.swapped_copies
        return (copies, self.recipe.train.seed) if copies else ()

    def kept(self, part: Part, counts: Counter[str]) -> Iterator[tuple[Example, Encoded]]:
        """The rows that are trained or evaluated on; all others are counted."""
        data = self.recipe.data
        for batch in in_batches(self._copied() if part == "train" else self.read(part), BATCH_ROWS):
            encoded = encode_batch(batch, self.tokenizer, loss_on=data.loss_on)
            for example, whole in zip(batch, encoded, strict=True):
                counts["unanswered"] += bool(example.unanswered)
                row = _fit(whole, data, counts, is_empty=says_nothing(example, data))
                if row is not None:
                    yield example, row

    def write(self, rows: Iterable[tuple[Example, Encoded]], path: Path) -> int:
        """Token ids and labels of rows as files that begin with `path`; how many rows they are."""
        return write_tokens((row for _, row in rows), path)

    def open(self, path: Path, key: str) -> Tokens:
        """The rows that `write` wrote; `key` identifies what they were made from."""
        return open_tokens(path, key)

    def nothing_left(self, part: Part, counts: Mapping[str, int]) -> DataError:
        """Why no row of a part can be used."""
        data = self.recipe.data
        source = data.train if part == "train" else data.eval or data.train
        what = "no row can be trained on" if part == "train" else "no eval row can be used"
        cure = "fill the answers, or set data.loss_on"
        if counts["too_long"] or counts["longest"] > data.max_seq_len:
            cure = f"raise data.max_seq_len; the longest row has {counts['longest']} tokens"
        return DataError(
            f"{source}: {what}: {counts['too_long']} longer than {data.max_seq_len} tokens, "
            f"{counts['untrainable']} without a token to learn",
            cure=cure,
        )

    def report(self, counts: Mapping[Part, Mapping[str, int]], _: Path) -> DataReport:
        """What became of the rows that `kept` counted."""
        recipe, train, held_out = self.recipe, counts["train"], counts["eval"]
        form, reason = _format_of(find_source(recipe.data, "train"))
        noted = itertools.islice(self.read("train"), NOTED_ROWS)
        return DataReport(
            format=form,
            format_reason=reason,
            train_rows=train["rows"],
            eval_rows=held_out["rows"],
            train_source=source_of(recipe, "train"),
            eval_source=source_of(recipe, "eval"),
            dropped_too_long=train["too_long"],
            truncated=train["truncated"],
            dropped_untrainable=train["untrainable"],
            eval_dropped=held_out["too_long"] + held_out["untrainable"],
            tokens=train["tokens"],
            trained_tokens=train["trained_tokens"],
            longest=train["longest"],
            unanswered=train["unanswered"] + held_out["unanswered"],
            has_default_template=self.has_default_template,
            chat_notes=chat_notes(self.tokenizer, noted) if form != "text" else (),
            columns_left_out=left_out(recipe),
        )

    def read_report(self, values: Mapping[str, Any]) -> DataReport:
        """The report whose values are read from a file."""
        return DataReport(**values)

    def _copied(self) -> Iterator[Example]:
        """The train rows, each followed by its copies with swapped values where the recipe asks for them."""
        count, seed = self.recipe.data.swapped_copies, self.recipe.train.seed
        if not count:
            yield from self.read("train")
            return
        values = Values(partial(self.read, "train"), seed=seed)
        for example in self.read("train"):
            yield example
            yield from values.copies(example, count, seed=seed)


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
