"""What a bundle of a classifier says in edgetune.json: how texts become logits and logits an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.runtime.manifest import GRAPH, TOKENIZER, is_count, is_number, is_text, refuse

KEY = "classifier"
NEEDED: tuple[str, ...] = (TOKENIZER, GRAPH)
REJECT_ALL = math.nextafter(1.0, 2.0)
"""The highest threshold: every text is unknown, also one whose label has a probability of 1."""


@dataclass(frozen=True)
class ClassifierFormat:
    """How texts become logits and logits an answer."""

    labels: tuple[str, ...]
    """Names in the order of the logits."""
    multi_label: bool
    """Whether each label is a question of its own (sigmoid), instead of one answer among them (softmax)."""
    max_length: int
    """Tokens of a text, special ones included; what is longer is cut."""
    pad_id: int
    """Fills the shorter texts of a batch."""
    temperature: float = 1.0
    """Logits are divided by it, so that probabilities mean what they say."""
    threshold: float | None = None
    """Least probability of an answer; below it the text is unknown."""
    out_of_scope_label: str | None = None
    """The label that means unknown."""


def read(values: Mapping[str, Any]) -> ClassifierFormat:
    """Raises ValueError for a value of the wrong kind or out of its range."""
    found = ClassifierFormat(**{**values, "labels": tuple(values["labels"])})
    labels, threshold, out_of_scope = found.labels, found.threshold, found.out_of_scope_label
    is_names = isinstance(values["labels"], list) and all(is_text(label) for label in labels)
    good = {
        "labels": is_names and 0 < len(labels) == len(set(labels)),
        "multi_label": isinstance(found.multi_label, bool),
        "max_length": is_count(found.max_length, least=1),
        "pad_id": is_count(found.pad_id),
        "temperature": is_number(found.temperature) and found.temperature > 0,
        "threshold": threshold is None or (is_number(threshold) and 0 <= threshold <= REJECT_ALL),
        "out_of_scope_label": out_of_scope is None or out_of_scope in labels,
    }
    refuse(KEY, found, good)
    return found
