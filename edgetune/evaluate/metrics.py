"""Scores of answers and their uncertainty: exact match, JSON equality, fields, bootstrap intervals. Pure functions.

In the flow: evaluate/score.py hands in answers and references as text, losses as (sum, count) pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Interval = tuple[float, float]
Leaf = tuple[str, str, Any]
"""(path, kind, value) of one field: ("slots.city", "text", "Rome")."""

_RESAMPLED_VALUES = 4_000_000
"""Values drawn at once while bootstrapping: bounds memory to some 64 MB."""


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


def score_fields(rows: Sequence[FieldCounts], *, samples: int = 1000, confidence: float = 0.95) -> FieldScore:
    """Precision, recall and F1 over the fields of all rows together. Raises ValueError without rows."""
    matched, answered, wanted = (sum(getattr(row, name) for row in rows) for name in ("matched", "answered", "wanted"))
    doubled = [2 * row.matched for row in rows]
    return FieldScore(
        precision=_ratio(matched, answered),
        recall=_ratio(matched, wanted),
        f1=_ratio(2 * matched, answered + wanted),
        f1_interval=bootstrap_interval(
            doubled, [row.answered + row.wanted for row in rows], samples=samples, confidence=confidence
        ),
        valid=_ratio(sum(row.is_valid for row in rows), len(rows)),
        matched=matched,
        answered=answered,
        wanted=wanted,
    )


def bootstrap_interval(
    sums: Iterable[float],
    counts: Iterable[float] | None = None,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of sum(sums) / sum(counts) when rows are drawn again with replacement.

    Without `counts` it is the interval of the mean. A loss takes the summed nats of each row and its trained tokens, so
    that long rows weigh by their tokens. The same seed and rows give the same interval. Raises ValueError without rows.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    tops = np.asarray(list(sums), dtype=np.float64)
    bottoms = np.ones_like(tops) if counts is None else np.asarray(list(counts), dtype=np.float64)
    if tops.size == 0 or tops.size != bottoms.size:
        raise ValueError(f"{tops.size} sums and {bottoms.size} counts: need as many of both, and at least one")
    generator = np.random.default_rng(seed)
    chunk = max(1, _RESAMPLED_VALUES // tops.size)
    ratios = []
    for start in range(0, samples, chunk):
        drawn = generator.integers(0, tops.size, size=(min(chunk, samples - start), tops.size))
        bottom = bottoms[drawn].sum(axis=1)
        ratios.append(np.divide(tops[drawn].sum(axis=1), bottom, out=np.zeros_like(bottom), where=bottom > 0))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(ratios), [tail, 1.0 - tail])
    return float(low), float(high)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value
