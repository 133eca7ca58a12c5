"""Eval rows that are set apart from training rows by what the rows say: the same ones in every run. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edgetune.data.formats import Example
from edgetune.data.splits import Part
from edgetune.errors import DataError

NEVER = 2.0
"""What a row draws that must not become an eval row."""


def set_apart(read: Callable[[], Iterator[Example]], part: Part, *, fraction: float, source: str) -> Iterator[Example]:
    """The train or the eval rows of a source that `read` gives the rows of, twice; about `fraction` are eval rows.

    Raises DataError if the rows cannot be split.
    """
    most = _threshold(read(), fraction, source)
    for example, draw in _draws(read()):
        if (draw <= most) == (part == "eval"):
            yield example


def _threshold(every: Iterable[Example], fraction: float, source: str) -> float:
    """Rows that draw at most this are eval rows: the fraction, or the least draw where no row would be one."""
    least, count, labels, has_copies = NEVER, 0, set[str](), False
    for example, draw in _draws(every):
        count += 1
        least = min(least, draw)
        has_copies |= labels.issuperset(example.labels)
        labels.update(example.labels)
        if least <= fraction and count > 1:
            return fraction
    if not count:
        raise DataError(f"{source}: holds no rows")
    if count < 2 or least == NEVER:
        what = "one row" if count < 2 else "one row a label"
        what += ", repeated texts counted once," if count > 1 and has_copies else ""
        raise DataError(f"{source}: {what} cannot be split into train and eval rows", cure="name rows in data.eval")
    return least


def _draws(every: Iterable[Example]) -> Iterator[tuple[Example, float]]:
    """Each example with a number in (0, 1] that depends on its content alone.

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
