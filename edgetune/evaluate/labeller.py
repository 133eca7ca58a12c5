"""Score labels on a label set: the same code for a torch model and for a bundle, through the Labeller protocol.

Runs in the target's own process (child.py). Logits -> temperature, fitted on the eval rows (a bundle has its own) ->
probabilities -> scores with intervals, and rejection where it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgetune.evaluate import calibration, label_metrics
from edgetune.evaluate import rejection as rejecting
from edgetune.evaluate.label_rows import LabelRow, LabelSet, make_calibration_set, targets_of
from edgetune.evaluate.resample import Bootstrap, Interval
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.runtime.probabilities import confidences, probabilities

LATENCY_TEXTS = 50
BATCH_TEXTS = 256
"""Texts between two reports of progress."""


class Labeller(Protocol):
    """What can be measured: gives logits."""

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels) float32."""
        ...


@dataclass(frozen=True)
class LabelScore:
    """What a target scored. Shares in 0..1, losses in nats per text."""

    metric: str
    rows: int
    score: float
    """By the metric."""
    interval: Interval
    loss: float
    loss_interval: Interval
    temperature: float
    classes: Mapping[str, Any]
    """label_metrics.LabelMetrics as JSON-able values; of the rows in scope."""
    rejection: Mapping[str, Any] | None
    """rejection.Rejection as JSON-able values, where the recipe asks for it."""
    is_calibrated_on_scored_rows: bool
    """Temperature and threshold come from the very rows that are scored, for want of test rows."""
    confidence: float
    seconds: float


@dataclass(frozen=True)
class LabelAnswer:
    """One labelled row."""

    text: str
    labels: tuple[str, ...]
    """The right ones."""
    answer: tuple[str, ...]
    """The likeliest, whether the target is sure of it or not; of multi-label rows all that apply."""
    probability: float
    """How sure the answer is: see runtime.probabilities.confidences."""
    is_unknown: bool
    correct: bool
    """Whether `answer` is right; a row that is unknown can be."""
    place: str


@dataclass(frozen=True)
class Latency:
    """Labelling single texts (batch 1), tokenizer included."""

    median_s: float
    p95_s: float
    texts: int

    @property
    def columns(self) -> dict[str, float]:
        """What a table shows of it."""
        return {"latency_s": self.median_s}


def score(
    target: Labeller,
    label_set: LabelSet,
    *,
    calibrated: tuple[float, float | None] | None = None,
    progress: Progress | None = None,
) -> tuple[LabelScore, list[LabelAnswer]]:
    """Scores and the answer to each row. `calibrated`: temperature and threshold, where the target has its own."""
    started = time.perf_counter()
    logits = _logits(target, label_set, label_set.rows, progress)
    targets = targets_of(label_set.rows, label_set)
    if label_set.scores_calibration_rows and len(label_set.rows) == len(label_set.calibration):
        fitted = _fit(label_set, logits, targets)
    else:
        fitted = calibrated if calibrated and not label_set.scores_calibration_rows else calibrate(target, label_set)
    temperature, threshold = calibrated or fitted
    found = probabilities(logits, temperature=temperature, multi_label=label_set.multi_label)
    is_in_scope = _in_scope(label_set, targets)
    losses = calibration.row_losses(logits, targets, temperature=temperature, multi_label=label_set.multi_label)
    bootstrap = Bootstrap(label_set.bootstrap_samples, label_set.confidence, label_set.seed)
    labels = label_metrics.Labels(
        label_set.labels,
        label_set.multi_label,
        positive=label_set.positive_label,
        out_of_scope=label_set.out_of_scope_label,
    )
    classes = label_metrics.score(found, targets, labels=labels, losses=losses, bootstrap=bootstrap)
    rejection = None
    if label_set.out_of_scope is not None or threshold is not None:
        sure, is_right = _sureness(label_set, found, targets)
        scored = rejecting.score_rejection(sure, is_right, is_in_scope, threshold or 0.0, bootstrap=bootstrap)
        rejection = dataclasses.asdict(scored)
    name = {"accuracy": "accuracy", "macro_f1": "macro_f1", "f1": "positive_f1"}[label_set.metric]
    values = dataclasses.asdict(classes)
    result = LabelScore(
        metric=label_set.metric,
        rows=len(label_set.rows),
        score=values[name],
        interval=values[f"{name}_interval"],
        loss=classes.loss,
        loss_interval=classes.loss_interval,
        temperature=temperature,
        classes=values,
        rejection=rejection,
        is_calibrated_on_scored_rows=label_set.scores_calibration_rows
        and math.isclose(temperature, fitted[0], rel_tol=1e-3),
        confidence=label_set.confidence,
        seconds=time.perf_counter() - started,
    )
    return result, _answers(label_set, found, threshold)


def calibrate(target: Labeller, label_set: LabelSet) -> tuple[float, float | None]:
    """Temperature and threshold, chosen on the eval rows.

    The threshold keeps the false-accept rate that is asked for. Without one it is learnt from the rows that are out of
    scope; without such rows either there is none.
    """
    rows = label_set.calibration
    return _fit(label_set, _logits(target, label_set, rows, None), targets_of(rows, label_set)) if rows else (1.0, None)


def _fit(label_set: LabelSet, logits: np.ndarray, targets: np.ndarray) -> tuple[float, float | None]:
    """Temperature and threshold that suit logits (N, labels) and targets best."""
    is_in_scope, rate = _in_scope(label_set, targets), label_set.false_accept_rate
    temperature = _temperature(label_set, logits, targets)
    if rate is None and (is_in_scope.all() or not is_in_scope.any()):
        return temperature, None
    found = probabilities(logits, temperature=temperature, multi_label=label_set.multi_label)
    sure, is_right = _sureness(label_set, found, targets)
    if rate is None:
        return temperature, rejecting.learn_threshold(sure, is_right, is_in_scope)
    acceptable = rejecting.acceptable_rows(is_right, is_in_scope)
    return temperature, max(0.0, rejecting.choose_threshold(sure, acceptable, false_accept_rate=rate))


def _temperature(label_set: LabelSet, logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature of the rows whose labels the head has."""
    if not label_set.multi_label:
        is_known = np.isfinite(logits[np.arange(len(targets)), targets])
        if not is_known.all():
            logits, targets = logits[is_known], targets[is_known]
    return calibration.fit_temperature(logits, targets, multi_label=label_set.multi_label)


def calibrate_for(recipe: Recipe, target: Labeller, labels: Sequence[str]) -> tuple[float, float | None]:
    """Temperature and threshold by a target's logits on a recipe's eval rows: what export writes into a bundle."""
    return calibrate(target, make_calibration_set(recipe, labels))


def latency_texts(label_set: LabelSet) -> list[str]:
    """LATENCY_TEXTS of the texts, drawn by the set's seed: files are often sorted by label."""
    texts = [row.text for row in label_set.rows]
    return random.Random(label_set.seed).sample(texts, min(LATENCY_TEXTS, len(texts)))


def measure_latency(target: Labeller, texts: Sequence[str]) -> Latency:
    """Time of one text at a time, after a warm-up."""
    for text in texts[:3]:
        target.logits([text])
    times = []
    for text in texts:
        started = time.perf_counter()
        target.logits([text])
        times.append(time.perf_counter() - started)
    return Latency(statistics.median(times), float(np.quantile(times, 0.95)), len(times))


def _logits(target: Labeller, label_set: LabelSet, rows: Sequence[LabelRow], progress: Progress | None) -> np.ndarray:
    """(rows, labels) float32; a label that the head does not have is never likely: -inf."""
    parts = []
    for start in range(0, len(rows), BATCH_TEXTS):
        parts.append(target.logits([row.text for row in rows[start : start + BATCH_TEXTS]]))
        if progress:
            done = min(start + BATCH_TEXTS, len(rows))
            progress({"stage": "evaluate", "step": done, "steps": len(rows), "is_last": done == len(rows)})
    logits = np.concatenate(parts)
    missing = len(label_set.labels) - logits.shape[1]
    return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf) if missing else logits


def _in_scope(label_set: LabelSet, targets: np.ndarray) -> np.ndarray:
    """Which rows have a label of their own, (rows,) bool."""
    if label_set.multi_label or label_set.out_of_scope is None:
        return np.ones(len(targets), bool)
    return np.asarray(targets != label_set.out_of_scope)


def _sureness(label_set: LabelSet, found: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure an answer with a label is, (rows,), -1 where the answer is out of scope; and whether it is right."""
    chosen = label_metrics.answers(found, multi_label=label_set.multi_label)
    is_right = (chosen == targets).all(1) if label_set.multi_label else chosen == targets
    sure = confidences(found, multi_label=label_set.multi_label)
    if label_set.out_of_scope is not None:
        sure = np.where(chosen == label_set.out_of_scope, -1.0, sure)
    return sure, np.asarray(is_right)


def _answers(label_set: LabelSet, found: np.ndarray, threshold: float | None) -> list[LabelAnswer]:
    """What each row was and what it was taken for."""
    chosen = label_metrics.answers(found, multi_label=label_set.multi_label)
    sure = confidences(found, multi_label=label_set.multi_label)
    answers = []
    for row, answer, probability in zip(label_set.rows, chosen, sure, strict=True):
        numbers = np.flatnonzero(answer).tolist() if label_set.multi_label else [int(answer)]
        answers.append(
            LabelAnswer(
                text=row.text,
                labels=tuple(label_set.labels[number] for number in row.labels),
                answer=tuple(label_set.labels[number] for number in numbers),
                probability=float(probability),
                is_unknown=bool(probability < (threshold or 0.0) or numbers == [label_set.out_of_scope]),
                correct=sorted(numbers) == sorted(row.labels),
                place=row.place,
            )
        )
    return answers
