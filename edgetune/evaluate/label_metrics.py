"""Scores of labels that texts were given: accuracy, F1 and confusion with bootstrap intervals. Pure functions.

In the flow: logits -> probabilities at the temperature of calibration.py -> score. N rows, C labels; arithmetic in
float64. What an answer "unknown" is worth is in rejection.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune.evaluate import resample
from edgetune.evaluate.calibration import bin_gaps
from edgetune.evaluate.resample import Bootstrap, Interval, reflect
from edgetune.runtime.probabilities import APPLIES, confidences

MAX_CONFUSION_LABELS = 200
"""With more labels a confusion matrix is no longer something to look at, and none is made."""


@dataclass(frozen=True)
class Labels:
    """What columns of probabilities mean."""

    names: tuple[str, ...]
    multi_label: bool = False
    positive: str | None = None
    """The one whose F1 is a score of its own."""
    out_of_scope: str | None = None
    """The one of rows that no other fits."""


@dataclass(frozen=True)
class ClassScore:
    """How well one label is found among the rows in scope. Shares in 0..1, 0.0 where nothing can be divided, each with
    its bootstrap interval.
    """

    label: str
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval
    f1: float
    f1_interval: Interval
    support: int
    """Rows that have the label."""


@dataclass(frozen=True)
class LabelMetrics:
    """How good the answers and probabilities of rows in scope are. Shares in 0..1, losses in nats, each with its
    bootstrap interval.
    """

    rows: int
    accuracy: float
    """Share of rows that are right; of multi-label rows, those whose whole label set is right."""
    accuracy_interval: Interval
    macro_f1: float
    """Mean F1 of the labels that occur in truth or answers, the out-of-scope label left out."""
    macro_f1_interval: Interval
    micro_f1: float | None
    """F1 over all (row, label) pairs together; None for single-label rows, where it is the accuracy."""
    micro_f1_interval: Interval | None
    ece: float
    ece_interval: Interval
    """The basic interval: percentiles would mostly miss the truth."""
    loss: float
    """Mean negative log-likelihood of a row; of multi-label rows, of a (row, label) pair."""
    loss_interval: Interval
    positive_f1: float | None
    """F1 of the positive label; None where none is named."""
    positive_f1_interval: Interval | None
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    """Of all rows, those out of scope too: truth by answer. None if multi-label, or above MAX_CONFUSION_LABELS."""


def answers(probabilities: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """What is answered: the likeliest label (N,) int64, the first of equals; or all at 0.5 and above, (N, C) bool."""
    return probabilities >= APPLIES if multi_label else probabilities.argmax(axis=1)


def score(
    probabilities: np.ndarray, targets: np.ndarray, *, labels: Labels, losses: np.ndarray, bootstrap: Bootstrap
) -> LabelMetrics:
    """Accuracy, F1, calibration and loss of in-scope rows, with bootstrap intervals, and the score of each label.

    probabilities (N, C); targets (N,) int64, or (N, C) bool for multi-label rows; losses (N,) from
    calibration.row_losses. Rows whose target is the out-of-scope label count in the confusion matrix alone.
    - A label that occurs neither in truth nor in answers stays out of the macro F1, in each resample too; it equals
      scikit-learn's for labels=present. So does the out-of-scope label: to answer it in scope is wrong, and lowers the
      F1 of the label it should have been. Without any label, as in empty multi-label rows, F1 is 0.0.
    - Multi-label calibration pairs the probability of each label with whether the row has it, over all rows.
    - Rows are drawn again with replacement; intervals are percentiles of the resamples, but for the ECE's.
    Raises ValueError where shapes, targets or a named label do not fit, and without rows in scope.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    names, multi_label = labels.names, labels.multi_label
    _check(probabilities, targets, labels)
    positive, out_of_scope = _position(labels.positive, names), _position(labels.out_of_scope, names)
    chosen = answers(probabilities, multi_label=multi_label)
    sure = probabilities if multi_label else confidences(probabilities, multi_label=False)[:, None]
    inside = np.ones(len(targets), bool) if out_of_scope is None else targets != out_of_scope
    if not inside.any():
        raise ValueError("no in-scope row: need one to score")
    heads, counts = _row_values(chosen[inside], targets[inside], sure[inside], losses[inside], len(names))
    totals = np.asarray(counts.sum(axis=0)).reshape(1, 3, -1)
    shares, is_averaged = _label_shares(totals), np.arange(len(names)) != out_of_scope
    points = _head_scores(heads.sum(axis=0)[None], len(heads)) | _mean_f1s(_f1_sums(totals, shares, is_averaged))
    f1_sums, label_intervals = _resampled_labels(counts, is_averaged, bootstrap)
    resampled = _head_scores(bootstrap.sums(heads), len(heads)) | _mean_f1s(f1_sums)
    point = {name: float(found[0]) for name, found in points.items()}
    interval = {name: bootstrap.interval(found) for name, found in resampled.items()}
    per_class = _per_class(shares[0], label_intervals, totals[0, 2], names)
    named = None if positive is None else per_class[positive]
    return LabelMetrics(
        rows=len(heads),
        accuracy=point["accuracy"],
        accuracy_interval=interval["accuracy"],
        macro_f1=point["macro_f1"],
        macro_f1_interval=interval["macro_f1"],
        micro_f1=point["micro_f1"] if multi_label else None,
        micro_f1_interval=interval["micro_f1"] if multi_label else None,
        ece=point["ece"],
        ece_interval=reflect(point["ece"], interval["ece"]),
        loss=point["loss"],
        loss_interval=interval["loss"],
        positive_f1=named.f1 if named else None,
        positive_f1_interval=named.f1_interval if named else None,
        per_class=per_class,
        confusion=None if multi_label else _confusion(targets, chosen, len(names)),
    )


def _check(probabilities: np.ndarray, targets: np.ndarray, labels: Labels) -> None:
    rows, count, multi_label = len(targets), len(labels.names), labels.multi_label
    shape = (rows, count) if multi_label else (rows,)
    if not rows or probabilities.shape != (rows, count) or targets.shape != shape:
        raise ValueError(
            f"probabilities {probabilities.shape}, targets {targets.shape} and {count} labels do not fit: "
            f"need at least one row, (N, C) and {'(N, C)' if multi_label else '(N,)'}"
        )
    if not multi_label and not 0 <= targets.min() <= targets.max() < count:
        raise ValueError(f"targets reach from {targets.min()} to {targets.max()}: need 0 to {count - 1}")


def _position(label: str | None, labels: Sequence[str]) -> int | None:
    if label is not None and label not in labels:
        raise ValueError(f"{label!r} is none of the labels")
    return None if label is None else list(labels).index(label)


def _row_values(
    chosen: np.ndarray, targets: np.ndarray, sure: np.ndarray, losses: np.ndarray, labels: int
) -> tuple[np.ndarray, Any]:
    """What each row adds to the sums that all scores are made of: heads (N, 2 + BINS), counts (N, 3 labels) sparse.

    chosen and targets (N,) int64 or (N, labels) bool, sure (N, 1) or (N, labels). Heads: whether the row is right, its
    loss, its gaps by bin. Counts, of each label: whether it is wanted and answered, answered, wanted. A row of 10,000
    labels has few of them: the others take no memory.
    """
    from scipy import sparse

    def columns(each: np.ndarray) -> Any:
        if each.ndim == 2:
            return sparse.csc_array(each, dtype=np.float64)
        return sparse.csc_array((np.ones(len(each)), (np.arange(len(each)), each)), shape=(len(each), labels))

    is_equal = chosen == targets
    is_right = is_equal.all(axis=1) if is_equal.ndim == 2 else is_equal
    is_borne_out = targets.astype(bool) if is_equal.ndim == 2 else is_equal[:, None]
    heads = np.column_stack([is_right, losses, bin_gaps(sure, is_borne_out) / sure.shape[1]])
    answered, wanted = columns(chosen), columns(targets)
    return heads, sparse.hstack([answered.multiply(wanted), answered, wanted], format="csc")


def _head_scores(sums: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Scores (S,) each of S sums of heads (S, 2 + BINS) over as many rows each."""
    right, loss = sums[:, 0], sums[:, 1]
    return {"accuracy": right / rows, "loss": loss / rows, "ece": np.abs(sums[:, 2:]).sum(axis=1) / rows}


def _label_shares(sums: np.ndarray) -> np.ndarray:
    """Sums of counts (S, 3, labels) -> precision, recall and F1 of each label, (S, 3, labels)."""
    matched, answered, wanted = sums[:, 0], sums[:, 1], sums[:, 2]
    shares = np.zeros_like(sums)
    for place, (part, whole) in enumerate(((matched, answered), (matched, wanted), (2 * matched, answered + wanted))):
        np.divide(part, whole, out=shares[:, place], where=whole > 0)
    return shares


def _f1_sums(sums: np.ndarray, shares: np.ndarray, is_averaged: np.ndarray) -> np.ndarray:
    """What the mean F1s are made of, (4, S), which adds up over labels: F1 and number of the labels that occur and are
    averaged; twice the matched pairs, the answered and wanted ones.
    """
    f1, pairs = shares[:, 2], sums[:, 1] + sums[:, 2]
    present = (pairs > 0) & is_averaged
    return np.array([(f1 * present).sum(1), present.sum(1), 2 * sums[:, 0].sum(1), pairs.sum(1)])


def _mean_f1s(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"macro_f1": _ratio(sums[0], sums[1]), "micro_f1": _ratio(sums[2], sums[3])}


def _resampled_labels(counts: Any, is_averaged: np.ndarray, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    """The resampled sums of _f1_sums, (4, S), and the intervals of each label's shares, (2, 3, labels).

    A block of labels at a time; labels that do not occur have 0.0 throughout.
    """
    labels = len(is_averaged)
    f1_sums, intervals = np.zeros((4, bootstrap.samples)), np.zeros((2, 3, labels))
    for block in _blocks(counts, labels, bootstrap.samples):
        drawn = bootstrap.sums(counts[:, np.concatenate([block, block + labels, block + 2 * labels])])
        sums = drawn.reshape(-1, 3, len(block))
        shares = _label_shares(sums)
        f1_sums += _f1_sums(sums, shares, is_averaged[block])
        intervals[:, :, block] = np.quantile(shares, bootstrap.tails, axis=0, overwrite_input=True)
    return f1_sums, intervals


def _blocks(counts: Any, labels: int, samples: int) -> Iterator[np.ndarray]:
    """The labels that occur, as many at a time as memory allows."""
    occurring = np.flatnonzero(np.asarray(counts.sum(axis=0)).reshape(3, labels).sum(axis=0))
    size = max(1, resample.VALUES_AT_ONCE // (3 * samples))
    for start in range(0, len(occurring), size):
        yield occurring[start : start + size]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0.0 where the whole is nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _per_class(
    shares: np.ndarray, intervals: np.ndarray, supports: np.ndarray, labels: Sequence[str]
) -> tuple[ClassScore, ...]:
    """The score of each label: shares (3, labels) and their intervals (2, 3, labels), rows that have it (labels,)."""
    bounds = intervals.transpose(2, 1, 0).tolist()
    rows = zip(labels, shares.T.tolist(), bounds, supports.astype(int).tolist(), strict=True)
    return tuple(
        ClassScore(label, precision, (p[0], p[1]), recall, (r[0], r[1]), f1, (f[0], f[1]), support)
        for label, (precision, recall, f1), (p, r, f), support in rows
    )


def _confusion(targets: np.ndarray, chosen: np.ndarray, count: int) -> tuple[tuple[int, ...], ...] | None:
    if count > MAX_CONFUSION_LABELS:
        return None
    cells = np.bincount(targets * count + chosen, minlength=count * count).reshape(count, count)
    return tuple(tuple(row) for row in cells.tolist())
