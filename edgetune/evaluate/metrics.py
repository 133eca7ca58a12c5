"""Scores of answers: exact match, JSON equality, fields with their uncertainty. Pure functions.

In the flow: evaluate/score.py hands in answers and references as text, losses as (sum, count) pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.evaluate.resample import Bootstrap, Interval

Leaf = tuple[str, str, Any]
"""(path, kind, value) of one field: ("slots.city", "text", "Rome")."""


@dataclass(frozen=True)
class FieldCounts:
    """Fields of one answer: right ones, its own, the reference's."""

    matched: int
    answered: int
    wanted: int
    is_valid: bool


@dataclass(frozen=True)
class FieldScore:
    """How many fields of JSON answers are right, over all rows together (micro-average). Shares lie in 0..1."""

    precision: float
    recall: float
    f1: float
    f1_interval: Interval
    valid: float
    """Share of answers that are JSON at all."""
    matched: int
    answered: int
    wanted: int


def is_exact(answer: str, reference: str) -> bool:
    """Whether two texts are the same, white space at both ends aside."""
    return answer.strip() == reference.strip()


def parse_json(text: str) -> tuple[bool, Any]:
    """(True, value) of a JSON text, else (False, None): for NaN, Infinity and an object with a key twice, too."""
    try:
        return True, json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return False, None


def is_same_json(answer: str, reference: str) -> bool:
    """Whether two texts are the same JSON value: key order and spelling of numbers (1, 1.0) aside; lists keep order."""
    answer_valid, answer_value = parse_json(answer)
    reference_valid, reference_value = parse_json(reference)
    return answer_valid and reference_valid and Counter(fields(answer_value)) == Counter(fields(reference_value))


def fields(value: Any, path: str = "") -> list[Leaf]:
    """The fields of a JSON value as (path, kind, value), one for each leaf; empty objects and lists are leaves too.

    Two values have equal fields exactly if they are the same JSON value: keys are quoted in paths, so {"a.b": 1}
    differs from {"a": {"b": 1}}, and kinds keep true apart from 1.
    """
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in fields(item, f"{path}.{json.dumps(key)}")]
    if isinstance(value, list) and value:
        return [leaf for index, item in enumerate(value) for leaf in fields(item, f"{path}[{index}]")]
    if isinstance(value, dict | list):
        return [(path, "object" if isinstance(value, dict) else "list", "")]
    if isinstance(value, bool):
        return [(path, "bool", value)]
    if isinstance(value, int | float):
        return [(path, "number", value)]
    return [(path, "text", value) if isinstance(value, str) else (path, "null", "")]


def count_fields(answer: str, reference: str) -> FieldCounts:
    """The fields of one JSON answer against its reference; an invalid answer holds none.

    Raises ValueError if the reference is not JSON.
    """
    is_valid, value = parse_json(answer)
    reference_valid, reference_value = parse_json(reference)
    if not reference_valid:
        raise ValueError(f"reference is not JSON: {reference[:80]!r}")
    got = Counter(fields(value)) if is_valid else Counter()
    want = Counter(fields(reference_value))
    return FieldCounts((got & want).total(), got.total(), want.total(), is_valid)


def score_fields(rows: Sequence[FieldCounts], *, bootstrap: Bootstrap | None = None) -> FieldScore:
    """Precision, recall and F1 over the fields of all rows together. Raises ValueError without rows."""
    matched, answered, wanted = (sum(getattr(row, name) for row in rows) for name in ("matched", "answered", "wanted"))
    doubled = [2 * row.matched for row in rows]
    return FieldScore(
        precision=_ratio(matched, answered),
        recall=_ratio(matched, wanted),
        f1=_ratio(2 * matched, answered + wanted),
        f1_interval=(bootstrap or Bootstrap()).mean_interval(doubled, [row.answered + row.wanted for row in rows]),
        valid=_ratio(sum(row.is_valid for row in rows), len(rows)),
        matched=matched,
        answered=answered,
        wanted=wanted,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value
