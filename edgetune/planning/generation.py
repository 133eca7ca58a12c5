"""What a plan looks at where a decoder is trained to answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import DataError
from edgetune.planning.findings import CHECKED_ROWS, Findings
from edgetune.recipe import Recipe

if TYPE_CHECKING:
    from edgetune.data.formats import Example
    from edgetune.data.read import Split

RENDERED_ROWS = 8
"""Of the checked rows, conversations whose prompt is rendered as on the device too."""


def check_base(recipe: Recipe, base: Path, found: Findings) -> bool:
    """Whether the graphs can be written, and be computed at the longest text."""
    from edgetune.export.architecture import check_architecture
    from edgetune.verify.lengths import check_computable

    return found.holds(lambda: check_architecture(base)) and found.holds(
        lambda: check_computable(base, max_length=recipe.export.max_length)
    )


def labels(_recipe: Recipe) -> Sequence[str]:
    """None."""
    return ()


def encode(recipe: Recipe, examples: Sequence[Example], tokenizer: Any) -> Sequence[Any]:
    """Examples as they are trained on, with the tokenizer's chat template or a plain one."""
    from edgetune.data.chat import ensure_chat_template
    from edgetune.data.encode import encode_batch

    ensure_chat_template(tokenizer)
    return encode_batch(examples, tokenizer, loss_on=recipe.data.loss_on)


def count(recipe: Recipe, which: Split, examples: Sequence[Example], tokenizer: Any) -> dict[str, int]:
    """Tokens, trained ones, the longest row and those that are too long. Raises DataError."""
    from edgetune.data.generation import says_nothing
    from edgetune.data.kinds import require_each_kind

    if which == "test" and len(examples) < CHECKED_ROWS and all(says_nothing(row, recipe.data) for row in examples):
        raise DataError("data.test: no row has anything to learn", cure="fill the answers, or set data.loss_on")
    encoded = encode(recipe, examples, tokenizer)
    if which != "test":  # of these only what is scored is rendered
        require_each_kind(recipe, which, tokenizer)
    return {
        "tokens": sum(len(row.input_ids) for row in encoded),
        "trained_tokens": sum(row.trained_tokens for row in encoded),
        "longest": max(len(row.input_ids) for row in encoded),
        "too_long": sum(len(row.input_ids) > recipe.data.max_seq_len for row in encoded),
    }


def check_use(
    recipe: Recipe, base: Path, tokenizer: Any, _labels: Sequence[str], found: Findings, scored_rows: int | None
) -> None:
    """Whether prompts are rendered as on the device, some rows fit, and the metric can score what is to be scored."""
    from edgetune.data.generation import left_out
    from edgetune.data.prepare import require_usable
    from edgetune.evaluate.rows import check_scored_rows
    from edgetune.model.config import context_length, read_config
    from edgetune.model.gguf_folder import gguf_note

    if note := gguf_note(base):
        found.notes.append(f"model.base: {note}")
    found.attempt(lambda: found.notes.extend(_look_at_chat(recipe, base, tokenizer)))
    if columns := found.attempt(lambda: left_out(recipe)):
        found.notes.append(f"data.train: columns left out: {', '.join(columns)}")
    longest = context_length(read_config(base), recipe.export)
    if found.holds(lambda: require_usable(recipe, tokenizer)):
        found.attempt(lambda: check_scored_rows(recipe, tokenizer, context_length=longest, most=scored_rows))


def _look_at_chat(recipe: Recipe, base: Path, tokenizer: Any) -> list[str]:
    """What a user may not expect of how a decoder's rows are rendered and answers end.

    Raises DataError or ModelError if nothing ends an answer, or the device would render a prompt otherwise.
    """
    from edgetune.data.chat import chat_notes, check_device_text, end_ids
    from edgetune.data.prepare import examples

    first = list(itertools.islice(examples(recipe, "train"), CHECKED_ROWS))
    chats = [example for example in first if example.messages]
    end_ids(tokenizer, base, is_chat=bool(chats))
    for example in chats[:RENDERED_ROWS]:
        check_device_text(tokenizer, example)
    return [f"data.train: {note}" for note in chat_notes(tokenizer, chats)] if chats else []
