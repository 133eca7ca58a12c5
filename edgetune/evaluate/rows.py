"""The rows that every target answers: the same token ids, references and settings for a base, an adapter and a bundle.

In the flow: the evaluating process encodes the data once and writes a file; each target is measured in a process of its
own that reads the file. This module needs neither torch nor transformers to read.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgetune.data.read import Split
from edgetune.errors import DataError, RunError
from edgetune.evaluate.metrics import Metric, parse_json
from edgetune.evaluate.text_metrics import final_number, require
from edgetune.files import atomic_file, read_json
from edgetune.hashes import hash_values
from edgetune.recipe import Recipe

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

    rows: tuple[EvalRow, ...]
    metric: Metric
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
    def left_out(self) -> str:
        """What became of rows that cannot be scored, for a user; "" if there are none."""
        count = self.dropped_too_long
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

    require(recipe.evaluate.metric)
    found = list(examples(recipe, split))
    settings, metric = recipe.evaluate, cast(Metric, recipe.evaluate.metric)
    drawn = found
    if settings.max_rows is not None and settings.max_rows < len(found):
        places = random.Random(recipe.train.seed).sample(range(len(found)), settings.max_rows)
        drawn = [found[index] for index in sorted(places)]
    rows = [_encode(example, tokenizer, recipe) for example in drawn]
    fitting = [row for row in rows if len(row.input_ids) <= context_length]
    source = (split == "test" and recipe.data.test) or recipe.data.eval or recipe.data.train
    if not fitting:
        raise DataError(
            f"{source}: no row to evaluate on fits {context_length} tokens" if rows else f"{source}: no rows"
        )
    for row in fitting:
        check_reference(row.messages, row.reference, row.place, metric)
    return EvalSet(
        rows=tuple(fitting),
        metric=metric,
        limits=Limits(settings.max_new_tokens, context_length, tuple(sorted(eos_ids))),
        bootstrap_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        source=source,
        source_rows=len(found),
        dropped_too_long=len(rows) - len(fitting),
        check=_check_file(recipe) if metric == "check" else None,
        check_seconds=settings.check_seconds,
    )


def write_eval_set(path: Path, eval_set: EvalSet) -> None:
    """Write an eval set as JSON, atomically. Raises RunError."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(eval_set), ensure_ascii=False), encoding="utf-8")


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


def _check_file(recipe: Recipe) -> str:
    """The path of the user's check. Raises DataError if there is none."""
    path = Path(recipe.evaluate.check or "").expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file", cure="evaluate.check names a Python file")
    return str(path.resolve())


def check_reference(asked: Sequence[Any], reference: str | None, place: str, metric: Metric) -> None:
    """Raises DataError for a row, the messages `asked` and the right answer, that the metric cannot score."""
    if metric == "loss":
        return
    if reference is None or not asked:
        raise DataError(
            f"{place}: holds no question with an answer, which {metric} needs", cure='set evaluate.metric = "loss"'
        )
    if metric == "final_number" and final_number(reference) is None:
        raise DataError(
            f"{place}: the reference has no number: {reference[:60]!r}", cure='set evaluate.metric = "exact_match"'
        )
    if metric == "json" and not parse_json(reference)[0]:
        raise DataError(
            f"{place}: the reference is not JSON: {reference[:60]!r}", cure='set evaluate.metric = "exact_match"'
        )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
