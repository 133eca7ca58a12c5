"""Score a target on an eval set: the same code for a torch model and for a bundle, through the Answerer protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgetune.evaluate.metrics import FieldScore, Interval, Metric
from edgetune.evaluate.rows import EvalRow, EvalSet

Progress = Callable[[Mapping[str, Any]], None]


class Answerer(Protocol):
    """What can be measured: answers prompts greedily and tells losses."""

    def generate(
        self,
        rows: Sequence[EvalRow],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """The likeliest answer to each row's prompt, in order; `on_done` hears how many rows are finished."""
        ...

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row, in order."""
        ...

    def decode_speed(self, row: EvalRow, *, new_tokens: int, eos_ids: Sequence[int]) -> tuple[int, float]:
        """(tokens, seconds) of decoding the answer to one prompt alone, its first token left out."""
        ...


@dataclass(frozen=True)
class Answer:
    """One answered row."""

    prompt: str
    """The last user message, or "" for plain text."""
    reference: str | None
    answer: str | None
    """None where nothing was generated."""
    correct: bool | None
    loss: float | None
    """Nats per trained token of this row; None without a trained token."""
    loss_sum: float
    trained_tokens: int


@dataclass(frozen=True)
class Score:
    """What a target scored. Shares in 0..1, losses in nats per trained token."""

    metric: Metric
    rows: int
    score: float | None
    """Share of rows that are right; None when the metric is the loss."""
    interval: Interval | None
    loss: float
    loss_interval: Interval
    perplexity: float
    trained_tokens: int
    fields: FieldScore | None
    """Field-by-field scores when the metric is json."""
    confidence: float
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Decoding of single prompts (batch 1), first tokens left out."""

    tokens_per_s: float
    """Median over the prompts."""
    low: float
    high: float
    prompts: int
    tokens: int


def score(target: Answerer, eval_set: EvalSet, *, progress: Progress | None = None) -> tuple[Score, list[Answer]]:
    """Score every row: generate (unless the metric is the loss), compare, take losses, bootstrap the intervals."""
    ...


def measure_speed(target: Answerer, eval_set: EvalSet, *, prompts: int = 8, new_tokens: int = 64) -> Speed | None:
    """Decoding speed of one prompt at a time over the first rows, after one prompt of warm-up; None if nothing decodes."""
    ...
