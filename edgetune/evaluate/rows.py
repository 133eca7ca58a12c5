"""The rows that every target answers: the same token ids, references and settings for a base, an adapter and a bundle.

In the flow: the evaluating process encodes the data once and writes a file; each target is measured in a process of its
own that reads the file. This module needs neither torch nor transformers to read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from edgetune.data.read import Split
from edgetune.errors import DataError, RunError
from edgetune.evaluate.metrics import parse_json
from edgetune.evaluate.resample import Bootstrap
from edgetune.evaluate.text_metrics import final_number, require
from edgetune.files import atomic_file, read_json
from edgetune.hashes import hash_values
from edgetune.metric_names import TextMetric
from edgetune.recipe import Recipe
from edgetune.task_names import TaskName

_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class EvalRow:
    """One row of data, as text and as token ids."""

    messages: tuple[Mapping[str, Any], ...]
    """What is asked: messages as chat templates take them, up to the answer; empty for plain text."""
    reference: str | None
    """The right answer; None for plain text."""
    prompt_ids: tuple[int, ...]
    """Token ids of `messages` up to where the answer starts; empty for plain text."""
    input_ids: tuple[int, ...]
    """The whole row, answer included."""
    labels: tuple[int, ...]
    """input_ids where the loss counts, else -100; not shifted."""
    place: str
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of the tools that the answer may call."""

    @property
    def trained(self) -> list[int]:
        """Places of the tokens that the loss counts: the first one has nothing before it that could predict it."""
        return [index for index, label in enumerate(self.labels) if label != -100 and index > 0]


@dataclass(frozen=True)
class Limits:
    """When an answer ends: the same for every target."""

    max_new_tokens: int
    context_length: int
    """Longest text in tokens, prompt and answer together."""
    eos_ids: tuple[int, ...]
    """Generation stops at any of these."""


@dataclass(frozen=True)
class EvalSet:
    """Rows and how they are scored."""

    task: ClassVar[TaskName] = "generation"
    rows: tuple[EvalRow, ...]
    metric: TextMetric
    limits: Limits
    bootstrap_samples: int
    confidence: float
    source: str
    """Where the rows come from."""
    source_rows: int
    """How many rows were there, of which these were drawn."""
    dropped_too_long: int
    """Rows left out because they are longer than the context."""
    check: str | None = None
    """The user's Python file, absolute, where the metric is "check"."""
    check_seconds: float = 10.0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything, hex."""
        return hash_values(self)

    def evenly(self, most: int | None) -> EvalSet:
        """The set with at most so many of its rows, at even distances; None: with all."""
        if most is None or most >= len(self.rows):
            return self
        return dataclasses.replace(self, rows=tuple(self.rows[index] for index in even_places(len(self.rows), most)))

    @property
    def text_hash(self) -> str:
        """SHA-256, hex: equal where two targets see the same tokens."""
        return hash_values([(row.input_ids, row.labels) for row in self.rows])

    @property
    def dropped(self) -> int:
        """Rows that cannot be scored and were left out."""
        return self.dropped_too_long

    @property
    def left_out(self) -> str:
        """What became of rows that cannot be scored, for a user; "" if there are none."""
        count = self.dropped
        return f"{count} rows longer than the context were left out" if count else ""


def even_places(count: int, most: int) -> list[int]:
    """`most` of the numbers below `count`, at even distances from 0 on."""
    return [index * count // most for index in range(most)]


def make_eval_set(
    recipe: Recipe, tokenizer: Any, *, eos_ids: Sequence[int], context_length: int, split: Split = "test"
) -> EvalSet:
    """The recipe's test rows (else its eval rows), encoded; at most evaluate.max_rows of them, drawn by train.seed.

    With `split` those of another split.

    Rows longer than the context are left out and counted. Raises DataError if no row is left, if a row has no answer
    though the metric needs one, and if the metric is json and a reference is not; MissingExtraError if the metric needs
    a package that is not there.
    """
    from edgetune.data.prepare import examples

    check_metric(recipe)
    settings, metric = recipe.evaluate, cast(TextMetric, recipe.evaluate.metric)
    drawn, count = _draw(recipe, examples(recipe, split))
    rows = [_encode(example, tokenizer, recipe) for example in drawn]
    fitting = [row for row in rows if len(row.input_ids) <= context_length]
    source = (split == "test" and recipe.data.test) or recipe.data.eval or recipe.data.train
    if not fitting:
        raise _no_row_fits(recipe, source, context_length) if rows else DataError(f"{source}: no rows")
    check_references(((row.messages, row.reference, row.place) for row in fitting), metric)
    return EvalSet(
        rows=tuple(fitting),
        metric=metric,
        limits=Limits(settings.max_new_tokens, context_length, tuple(sorted(eos_ids))),
        bootstrap_samples=Bootstrap.samples,
        confidence=Bootstrap.confidence,
        source=source,
        source_rows=count,
        dropped_too_long=len(rows) - len(fitting),
        check=str(_check_file(recipe)) if metric == "check" else None,
        check_seconds=settings.check_seconds,
    )


def write_rows(path: Path, rows: Any) -> None:
    """Write an eval set, or a label set, as JSON, atomically. Raises RunError."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(rows), ensure_ascii=False), encoding="utf-8")


def read_eval_set(path: Path) -> EvalSet:
    """The eval set in a file. Raises RunError if it is missing or damaged."""
    try:
        values = read_json(path, cure="run the evaluation again")
        rows = tuple(EvalRow(**_tuples(row)) for row in values.pop("rows"))
        limits = Limits(**_tuples(values.pop("limits")))
        return EvalSet(rows=rows, limits=limits, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {error}", cure="run the evaluation again") from None


def _encode(example: Any, tokenizer: Any, recipe: Recipe) -> EvalRow:
    """A row whose answer is the example's last message, if that is the assistant's."""
    from edgetune.data.chat import render
    from edgetune.data.encode import answer_text, encode

    whole = encode(example, tokenizer, max_seq_len=_NO_LIMIT, loss_on=recipe.data.loss_on)
    is_answered = bool(example.messages) and example.messages[-1].role == "assistant"
    asked = example.messages[:-1] if is_answered else ()
    prompt_ids: list[int] = []
    if asked:
        text = render(tokenizer, asked, tools=example.tools, add_generation_prompt=True)
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return EvalRow(
        messages=tuple(message.turn for message in asked),
        reference=answer_text(example, tokenizer) if is_answered else None,
        prompt_ids=tuple(prompt_ids),
        input_ids=tuple(whole.input_ids),
        labels=tuple(whole.labels),
        place=example.place,
        tools=tuple(example.tools),
    )


def _check_file(recipe: Recipe) -> Path:
    """The path of the user's check. Raises DataError if there is none."""
    path = Path(recipe.evaluate.check or "").expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file", cure="evaluate.check names a Python file")
    return path.resolve()


def check_metric(recipe: Recipe) -> None:
    """Raises MissingExtraError if a package is not there that [evaluate] metric needs, DataError if its file is not."""
    require(recipe.evaluate.metric)
    if recipe.evaluate.metric == "check":
        _check_file(recipe)


def check_scored_rows(recipe: Recipe, tokenizer: Any, *, context_length: int, most: int | None = None) -> None:
    """Raises what make_eval_set raises for the rows that will be scored, of which it encodes at most the first `most`,
    or as far as one that fits; DataError for a check that cannot be imported, too.
    """
    from edgetune.data.prepare import examples
    from edgetune.evaluate.check import start_check

    check_metric(recipe)
    if recipe.evaluate.metric == "check":
        start_check(_check_file(recipe))
    drawn, _ = _draw(recipe, examples(recipe, "test"))
    every = (_encode(example, tokenizer, recipe) for example in drawn)
    fitting = (row for row in itertools.islice(every, most) if len(row.input_ids) <= context_length)
    told = [(row.messages, row.reference, row.place) for row in fitting]
    if not told and not any(len(row.input_ids) <= context_length for row in every):
        raise _no_row_fits(recipe, recipe.data.test or recipe.data.eval or recipe.data.train, context_length)
    unread = drawn[most:] if most is not None else []
    answers = (example.messages[-1].content if example.messages else None for example in unread)
    told += [(row.messages[:-1], answer, row.place) for row, answer in zip(unread, answers, strict=True)]
    check_references(told, cast(TextMetric, recipe.evaluate.metric))


def check_references(rows: Iterable[tuple[Sequence[Any], str | None, str]], metric: TextMetric) -> None:
    """Raises DataError if the metric cannot score some of the rows: what is asked, the right answer, the place.

    The first of them is named, and how many more there are.
    """
    first, more, count = None, 0, 0
    for asked, reference, place in rows:
        count += 1
        problem = _problem_with(asked, reference, metric)
        more += problem is not None and first is not None
        first = first or (problem and (place, *problem))
    if first:
        place, what, cure = first
        others = f", like {more:,} more of {count:,} rows" if more else ""
        raise DataError(f"{place}: {what}{others}", cure=cure)


def _problem_with(asked: Sequence[Any], reference: str | None, metric: TextMetric) -> tuple[str, str] | None:
    """Why the metric cannot score a row, and what to do; None where it can."""
    if metric == "loss":
        return None
    if reference is None or not asked:
        return f"holds no question with an answer, which {metric} needs", 'set evaluate.metric = "loss"'
    if metric == "final_number" and final_number(reference) is None:
        return f"the reference has no number: {reference[:60]!r}", 'set evaluate.metric = "exact_match"'
    if metric == "json" and not parse_json(reference)[0]:
        return f"the reference is not JSON: {reference[:60]!r}", 'set evaluate.metric = "exact_match"'
    return None


def _no_row_fits(recipe: Recipe, source: str, context_length: int) -> DataError:
    is_cut = recipe.export.max_length == context_length
    return DataError(
        f"{source}: no row to evaluate on fits {context_length} tokens",
        cure="raise export.max_length" if is_cut else "give shorter rows in data.test, or a base with a longer context",
    )


def _draw(recipe: Recipe, found: Iterable[Any]) -> tuple[list[Any], int]:
    """The rows that are scored, drawn by train.seed where there are more than evaluate.max_rows; how many there are."""
    every, most = list(found), recipe.evaluate.max_rows
    if most is None or most >= len(every):
        return every, len(every)
    places = random.Random(recipe.train.seed).sample(range(len(every)), most)
    return [every[index] for index in sorted(places)], len(every)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
