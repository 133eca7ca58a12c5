"""The rows that every target answers: the same token ids, references and settings for a base, an adapter and a bundle.

In the flow: the evaluating process encodes the data once and writes a file; each target is measured in a process of its
own that reads the file. This module needs neither torch nor transformers to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.evaluate.metrics import Metric
from edgetune.recipe import Recipe


@dataclass(frozen=True)
class EvalRow:
    """One row of data, as text and as token ids."""

    messages: tuple[Mapping[str, str], ...]
    """What is asked: {"role", "content"} up to the answer; empty for plain text."""
    reference: str | None
    """The right answer; None for plain text."""
    prompt_ids: tuple[int, ...]
    """Token ids of `messages` up to where the answer starts; empty for plain text."""
    input_ids: tuple[int, ...]
    """The whole row, answer included; () where it is too long for a loss."""
    labels: tuple[int, ...]
    """input_ids where the loss counts, else -100; not shifted."""
    place: str


@dataclass(frozen=True)
class EvalSet:
    """Rows and how they are scored."""

    rows: tuple[EvalRow, ...]
    metric: Metric
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    """Generation stops at any of these."""
    bootstrap_samples: int
    confidence: float
    source: str
    """Where the rows come from, and of how many they were drawn."""
    fingerprint: str
    """Hash of all of the above."""


def make_eval_set(recipe: Recipe, tokenizer: Any, *, context_length: int) -> EvalSet:
    """The recipe's test rows (else its eval rows), encoded; at most evaluate.max_rows of them, drawn by train.seed.

    Rows whose prompt leaves no room for an answer are a DataError, as are rows without an answer when the metric needs one
    and references that are not JSON when it is json.
    """
    ...


def write_eval_set(path: Path, eval_set: EvalSet) -> None:
    """Write an eval set as JSON, atomically. Raises RunError."""
    ...


def read_eval_set(path: Path) -> EvalSet:
    """The eval set in a file. Raises RunError if it is missing or damaged."""
    ...
