"""Conversations by what can make a chat template refuse them, so that one of each kind is enough to be looked at."""

from __future__ import annotations

import itertools
import json
from typing import Any

from edgetune.data.chat import ensure_chat_template
from edgetune.data.encode import encode_batch
from edgetune.data.formats import Example
from edgetune.data.prepare import MOST_ROWS, examples, training_rows
from edgetune.data.read import Split
from edgetune.recipe import Recipe


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
