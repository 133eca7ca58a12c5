"""Score a target on an eval set: the same code for a torch model and for a bundle, through the Answerer protocol."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgetune.evaluate.check import run_check
from edgetune.evaluate.metrics import (
    FieldScore,
    count_fields,
    is_exact,
    score_fields,
)
from edgetune.evaluate.resample import Bootstrap, Interval
from edgetune.evaluate.rows import EvalRow, EvalSet, Limits
from edgetune.evaluate.text_metrics import RIGHT_OR_WRONG, ROW_SCORES
from edgetune.metric_names import TextMetric
from edgetune.progress import Progress

LEAST_PROMPTS = 3
OnDone = Callable[[int], object]
"""Hears how many rows are finished."""


class Answerer(Protocol):
    """What can be measured: answers prompts greedily and tells losses."""

    def generate(self, rows: Sequence[EvalRow], *, limits: Limits, on_done: OnDone | None = None) -> list[str]:
        """The likeliest answer to each row's prompt, in order."""
        ...

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row, in order."""
        ...

    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row, in order."""
        ...

    def decode_speed(self, row: EvalRow, *, limits: Limits) -> tuple[int, float]:
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
    """None where nothing was generated, and where the metric knows more than right and wrong."""
    score: float | None
    """By the metric, 0..1; None where nothing was generated."""
    loss: float | None
    """Nats per trained token of this row; None without a trained token."""
    loss_sum: float
    trained_tokens: int
    place: str


@dataclass(frozen=True)
class Score:
    """What a target scored. Shares in 0..1, losses in nats per trained token."""

    metric: TextMetric
    rows: int
    score: float | None
    """Mean of the rows' scores, for most metrics the share of rows that are right; None when the metric is the loss."""
    interval: Interval | None
    loss: float
    loss_interval: Interval
    perplexity: float
    trained_tokens: int
    exact: float | None
    """Share of rows whose text is the reference's, whatever the metric; None when nothing was generated."""
    fields: FieldScore | None
    """Field-by-field scores when the metric is json."""
    confidence: float
    seconds: float
    check: Mapping[str, Any] | None = None
    """What became of the user's check, where the metric is one: timed_out, raised, first_error."""


@dataclass(frozen=True)
class Speed:
    """Decoding of single prompts (batch 1), first tokens left out."""

    tokens_per_s: float
    """Median over the prompts."""
    low: float
    high: float
    prompts: int
    tokens: int

    @property
    def columns(self) -> dict[str, float]:
        """What a table shows of it."""
        return {"tokens_per_s": self.tokens_per_s}


def score(target: Answerer, eval_set: EvalSet, *, progress: Progress | None = None) -> tuple[Score, list[Answer]]:
    """Score every row: generate (unless the metric is the loss), compare, take losses, bootstrap the intervals."""
    started = time.perf_counter()
    rows = eval_set.rows
    texts: list[str] | None = None
    if eval_set.metric != "loss":
        texts = target.generate(rows, limits=eval_set.limits, on_done=_reporter(progress, len(rows)))
    points, check = _points(eval_set, texts)
    answers = _compare(eval_set, texts, points, target.losses(rows))
    return _total(eval_set, answers, check, time.perf_counter() - started), answers


def measure_speed(
    target: Answerer, eval_set: EvalSet, *, prompts: int = 8, new_tokens: int = 64, enough_s: float = 2.0
) -> Speed | None:
    """Decoding speed of one prompt at a time over the first rows, after one of them as warm-up.

    After `enough_s` of decoding no further prompt is begun, but three are taken at least. None if no row has a prompt
    or every answer ends at once.
    """
    rows = [row for row in eval_set.rows if row.prompt_ids][:prompts]
    limits = eval_set.limits
    limits = dataclasses.replace(limits, max_new_tokens=min(new_tokens, limits.max_new_tokens))
    for row in rows[:1]:
        target.decode_speed(row, limits=limits)
    runs: list[tuple[int, float]] = []
    for row in rows:
        if len(runs) >= LEAST_PROMPTS and sum(seconds for _, seconds in runs) >= enough_s:
            break
        runs.append(target.decode_speed(row, limits=limits))
    rates = [tokens / seconds for tokens, seconds in runs if tokens and seconds > 0]
    if not rates:
        return None
    return Speed(statistics.median(rates), min(rates), max(rates), len(rates), sum(tokens for tokens, _ in runs))


def _points(eval_set: EvalSet, texts: list[str] | None) -> tuple[list[float] | None, Mapping[str, Any] | None]:
    """Each row's score by the metric, None without answers; and what became of the user's check, if that is it."""
    if texts is None:
        return None, None
    pairs = list(zip(texts, eval_set.rows, strict=True))
    if eval_set.metric != "check":
        row_score = ROW_SCORES[eval_set.metric]
        return [
            float(row_score(text, row.reference)) if row.reference is not None else 0.0 for text, row in pairs
        ], None
    asked = [(text, {**_plain_row(row), **_conversation(row)}) for text, row in pairs]
    checked = run_check(Path(eval_set.check or ""), asked, seconds=eval_set.check_seconds)
    facts = {"timed_out": checked.timed_out, "raised": checked.raised, "first_error": checked.first_error}
    return [float(passed) for passed in checked.passed], facts


def _conversation(row: EvalRow) -> dict[str, Any]:
    """What a user's check is told of what was asked."""
    return {"messages": list(row.messages), **({"tools": list(row.tools)} if row.tools else {})}


def _plain_row(row: EvalRow) -> dict[str, Any]:
    """What an answer is kept with: the last message, or "" for plain text, the reference, the place."""
    prompt = (row.messages[-1]["content"] or "") if row.messages else ""
    return {"prompt": prompt, "reference": row.reference, "place": row.place}


def _compare(
    eval_set: EvalSet, texts: list[str] | None, points: list[float] | None, losses: list[tuple[float, int]]
) -> list[Answer]:
    """The answers as they are kept."""
    answers = []
    is_right_or_wrong = eval_set.metric in RIGHT_OR_WRONG
    for index, (row, (loss_sum, count)) in enumerate(zip(eval_set.rows, losses, strict=True)):
        point = points[index] if points is not None and (row.reference is not None) else None
        answers.append(
            Answer(
                **_plain_row(row),
                answer=texts[index] if texts is not None else None,
                correct=bool(point) if point is not None and is_right_or_wrong else None,
                score=point,
                loss=loss_sum / count if count else None,
                loss_sum=loss_sum,
                trained_tokens=count,
            )
        )
    return answers


def _total(eval_set: EvalSet, answers: list[Answer], check: Mapping[str, Any] | None, seconds: float) -> Score:
    bootstrap = Bootstrap(eval_set.bootstrap_samples, eval_set.confidence)
    points = [answer.score or 0.0 for answer in answers] if eval_set.metric != "loss" else []
    texts = [(answer.answer or "", answer.reference or "") for answer in answers] if points else []
    sums = [answer.loss_sum for answer in answers]
    counts = [answer.trained_tokens for answer in answers]
    loss = sum(sums) / max(sum(counts), 1)
    fields = None
    if eval_set.metric == "json":
        fields = score_fields([count_fields(*pair) for pair in texts], bootstrap=bootstrap)
    return Score(
        metric=eval_set.metric,
        rows=len(answers),
        score=sum(points) / len(points) if points else None,
        interval=bootstrap.mean_interval(points) if points else None,
        loss=loss,
        loss_interval=bootstrap.mean_interval(sums, counts),
        perplexity=math.exp(min(loss, 700.0)),
        trained_tokens=sum(counts),
        exact=sum(is_exact(*pair) for pair in texts) / len(texts) if texts else None,
        fields=fields,
        confidence=eval_set.confidence,
        seconds=seconds,
        check=check,
    )


def _reporter(progress: Progress | None, total: int) -> OnDone | None:
    if progress is None:
        return None
    started = time.perf_counter()

    def report(done: int) -> None:
        left_s = (time.perf_counter() - started) * (total - done) / max(done, 1)
        progress({"stage": "evaluate", "step": done, "steps": total, "left_s": left_s, "is_last": done == total})

    return report
