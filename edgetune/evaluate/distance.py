"""How far a target is from the fine-tune, token by token: divergence and agreement of next-token distributions.

The fine-tune's process writes its distributions to a file, every other target's process compares its own with them.
Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgetune.evaluate.rows import EvalRow
from edgetune.files import atomic_file
from edgetune.runtime.probabilities import log_softmax

MOST_VALUES = 1 << 24
"""Probabilities in the file: 64 MiB, some 130 tokens of a vocabulary of 128,256."""
MOST_TOKENS = 2048
"""Tokens in the file, as many as the values allow: more would tell little more and cost each target its time."""


class Distributions(Protocol):
    """A target that tells its distributions."""

    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row, in order."""
        ...


@dataclass(frozen=True)
class Distance:
    """Two models on the same tokens, those that the loss counts; the fine-tune is the truth."""

    kl: float
    """Mean Kullback-Leibler divergence, nats a token."""
    agreement: float
    """Share of tokens that both find likeliest."""
    tokens: int


def write_distributions(target: Distributions, rows: Sequence[EvalRow], path: Path) -> None:
    """Write the target's log-probabilities (tokens, vocabulary) for as many rows as the bounds above allow."""
    found, size, tokens = [], 0, 0
    for logits in target.trained_logits(rows):
        found.append(log_softmax(logits))
        size, tokens = size + logits.size, tokens + len(logits)
        if size + logits.size > MOST_VALUES or tokens >= MOST_TOKENS:
            break
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(found) if found else np.zeros((0, 1), np.float32))


def measure_distance(target: Distributions, rows: Sequence[EvalRow], path: Path) -> Distance | None:
    """The distance of a target from what write_distributions wrote for the same rows; None without a token."""
    truth = np.load(path, mmap_mode="r")
    divergence, agreed, start = 0.0, 0, 0
    for logits in target.trained_logits(rows):
        wanted = truth[start : start + len(logits)]
        if len(wanted) < len(logits) or not len(truth):
            break
        found = log_softmax(logits)
        divergence += float((np.exp(wanted) * (wanted - found)).sum(dtype=np.float64))
        agreed += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        start += len(logits)
    return Distance(divergence / start, agreed / start, start) if start else None
