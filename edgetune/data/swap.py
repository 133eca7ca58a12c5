"""More rows from those there are: values that an answer in JSON copies from its question change places between rows.

"play X by Y" -> {"track": "X", "artist": "Y"} teaches where values stand as well with another artist of the training
rows in both places. Only strings that stand once in the question and once in the answer, as whole words, are swapped,
and only with values of the same field in answers that agree in all that was not copied: their intent, for instance.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from edgetune.data.formats import Example

SHARE = 0.5
"""Of the values of a copy, how many are swapped."""
LEAST_COPIED = 0.8
"""A field is one of copied values if it is copied in that share of the answers that have it: an intent called "play"
stands in many questions, but intents do not come from there."""
MOST_VALUES = 10_000
"""Values kept for one field; beyond that a seeded sample of them."""
Field = tuple[str, str]
"""What its answer says beside the copied values, and the path of the field."""


class Values:
    """The values of each field, as often as they occur."""

    def __init__(self, read: Callable[[], Iterable[Example]], *, seed: int) -> None:
        """`read` gives all examples, twice; memory grows with the distinct fields, not with the rows."""
        seen: Counter[str] = Counter()
        copied: Counter[str] = Counter()
        for example in read():
            leaves, found = _leaves_of(example)
            seen.update(dict(leaves).keys())
            copied.update(found.keys())
        self._paths = {path for path, count in seen.items() if copied[path] >= LEAST_COPIED * count}
        self._found: dict[Field, list[str]] = {}
        counts: Counter[Field] = Counter()
        draw = random.Random(seed)
        for example in read():
            for field, value in copied_values(example, self._paths).items():
                counts[field] += 1
                kept = self._found.setdefault(field, [])
                place = len(kept) if len(kept) < MOST_VALUES else draw.randrange(counts[field])
                if place < MOST_VALUES:
                    kept[place : place + 1] = [value]

    def copies(self, example: Example, count: int, *, seed: int) -> Iterator[Example]:
        """So many copies of the example with values swapped; one that comes out as the example itself is left out.

        The same example and seed give the same copies.
        """
        fields = copied_values(example, self._paths)
        if not fields:
            return
        draw = random.Random(f"{seed} {example.messages}")
        for _ in range(count):
            changed = example
            for field, value in fields.items():
                if draw.random() < SHARE:
                    changed = _swap(changed, value, draw.choice(self._found[field]))
            if changed.messages != example.messages:
                yield changed


def copied_values(example: Example, paths: Container[str]) -> dict[Field, str]:
    """The strings at these paths that the last answer, a JSON value, copies from the question before it."""
    leaves, found = _leaves_of(example)
    copied = {path: text for path, text in found.items() if path in paths}
    rest = json.dumps(sorted((path, repr(leaf)) for path, leaf in leaves if path not in copied))
    return {(rest, path): text for path, text in copied.items()}


def _leaves_of(example: Example) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """(path, value) of each leaf of the answer, and those that stand once in question and answer."""
    if len(example.messages) < 2 or example.messages[-1].role != "assistant":
        return [], {}
    question, answer = example.messages[-2].content, example.messages[-1].content
    try:
        leaves = list(_leaves(json.loads(answer), ""))
    except (ValueError, RecursionError):
        return [], {}
    copied = {
        path: text
        for path, text in leaves
        if isinstance(text, str) and len(_places(text, question)) == 1 and answer.count(_quoted(text, answer)) == 1
    }
    return leaves, copied


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _places(text: str, question: str) -> list[re.Match[str]]:
    """Where a text stands in a question as whole words."""
    return list(re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", question)) if text.strip() else []


def _quoted(text: str, answer: str) -> str:
    """The text as the answer spells it: letters as they are, or escaped."""
    plain = json.dumps(text, ensure_ascii=False)
    return plain if plain in answer else json.dumps(text)


def _swap(example: Example, old: str, new: str) -> Example:
    """The example with another value in question and answer; as it is where the places are no longer certain."""
    *before, question, answer = example.messages
    places = _places(old, question.content)
    if len(places) != 1 or answer.content.count(_quoted(old, answer.content)) != 1:
        return example
    start, stop = places[0].span()
    asked = question.content[:start] + new + question.content[stop:]
    answered = answer.content.replace(_quoted(old, answer.content), json.dumps(new, ensure_ascii=False))
    messages = (
        *before,
        dataclasses.replace(question, content=asked),
        dataclasses.replace(answer, content=answered),
    )
    return dataclasses.replace(example, messages=messages)
