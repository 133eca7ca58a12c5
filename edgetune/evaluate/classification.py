"""Scores of text classifiers: calibration, F1 and confusion with bootstrap intervals. Pure functions.

In the flow: logits of the eval split -> fit_temperature -> probabilities -> score. N rows, C labels; arithmetic in
float64. What a classifier that may answer "unknown" is worth is in rejection.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune.evaluate.metrics import Interval
from edgetune.runtime.classifier import APPLIES
from edgetune.runtime.classifier import confidences as confidences
from edgetune.runtime.classifier import probabilities as probabilities

BINS = 15
"""Of the expected calibration error, as in Guo et al. 2017."""
MAX_CONFUSION_LABELS = 200
"""With more labels a confusion matrix is no longer something to look at, and none is made."""
TEMPERATURES = (0.05, 20.0)
"""What fit_temperature may find."""

_VALUES_AT_ONCE = 2_000_000
"""Numbers held at once of losses and resamples: bounds memory to some 100 MB."""


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
class ClassificationScore:
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


def row_losses(logits: np.ndarray, targets: np.ndarray, *, temperature: float, multi_label: bool) -> np.ndarray:
    """Negative log-likelihood of each row, (N,) nats: softmax cross-entropy, or binary cross-entropy, mean of C.

    logits (N, C); targets (N,) int64, or (N, C) bool for multi-label rows.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    losses = np.empty(len(logits))
    for rows in _row_blocks(logits):
        scaled, aims = logits[rows].astype(np.float64) / temperature, targets[rows]
        if multi_label:
            losses[rows] = np.logaddexp(0.0, np.where(aims, -scaled, scaled)).mean(axis=1)
            continue
        chosen, highest = np.take_along_axis(scaled, aims[:, None], axis=1)[:, 0], scaled.max(axis=1)
        losses[rows] = np.log(np.exp(scaled - highest[:, None]).sum(axis=1)) + (highest - chosen)
    return losses


def fit_temperature(logits: np.ndarray, targets: np.ndarray, *, multi_label: bool) -> float:
    """The temperature that makes the rows likeliest: least mean loss over one scalar within TEMPERATURES.

    logits (N, C); targets (N,) int64, or (N, C) bool for multi-label rows. Without a row, a second label or any gain
    it is 1.0. Half a decision is counted as gone wrong to the runner-up label: rows that are all right would drive the
    temperature to its bound and every confidence to 1.0; on thousands of rows it changes nothing. In simulations with
    six labels it brought the loss on fresh rows from 0.34 to 0.23 after 50 rows, and left it alone after 1,000. The
    logits are read a block of rows at a time: memory does not grow with rows or labels.
    Sources: Guo et al. 2017, arXiv:1706.04599, section 4.2; softened targets: Platt 1999, Probabilistic Outputs for
    Support Vector Machines, section 2.2; half a count: Krichevsky and Trofimov 1981.
    """
    from scipy.optimize import minimize_scalar

    logits, targets = np.asarray(logits), np.asarray(targets)
    if not len(logits) or (logits.shape[1] < 2 and not multi_label):
        return 1.0
    wrong = ~targets.astype(bool) if multi_label else _runners_up(logits, targets)
    weight = 0.5 / (targets.size + 1)

    def loss(log_temperature: float) -> float:
        right, other = (
            row_losses(logits, aims, temperature=math.exp(log_temperature), multi_label=multi_label).mean()
            for aims in (targets, wrong)
        )
        return float((1.0 - weight) * right + weight * other)

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) - 1e-12 else 1.0


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray, *, bins: int = BINS) -> float:
    """How far confidence and accuracy lie apart, 0..1: mean over rows of the gap within their bin.

    confidence (N,) in 0..1, is_right (N,) bool; bins of equal width, closed above. Raises ValueError without rows.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    if not len(confidence):
        raise ValueError("no rows to calibrate on")
    gaps = _bin_gaps(np.asarray(confidence)[:, None], np.asarray(is_right)[:, None], bins)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


def score(
    probabilities: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    losses: np.ndarray,
    multi_label: bool,
    bootstrap_samples: int,
    confidence: float,
    seed: int,
    positive_label: str | None = None,
    out_of_scope_label: str | None = None,
) -> ClassificationScore:
    """Accuracy, F1, calibration and loss of in-scope rows, with bootstrap intervals, and the score of each label.

    probabilities (N, C); targets (N,) int64, or (N, C) bool for multi-label rows; labels: C names; losses (N,) from
    row_losses. Rows whose target is the out-of-scope label count in the confusion matrix alone.
    - A label that occurs neither in truth nor in answers stays out of the macro F1, in each resample too; it equals
      scikit-learn's for labels=present. So does the out-of-scope label: to answer it in scope is wrong, and lowers the
      F1 of the label it should have been. Without any label, as in empty multi-label rows, F1 is 0.0.
    - Multi-label calibration pairs the probability of each label with whether the row has it, over all rows.
    - Rows are drawn again with replacement; intervals are percentiles of the resamples, but for the ECE's.
    Raises ValueError where shapes, targets or a named label do not fit, and without rows in scope.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    _check(probabilities, targets, labels, multi_label=multi_label)
    positive, out_of_scope = _position(positive_label, labels), _position(out_of_scope_label, labels)
    chosen = answers(probabilities, multi_label=multi_label)
    sure = probabilities if multi_label else confidences(probabilities, multi_label=False)[:, None]
    inside = np.ones(len(targets), bool) if out_of_scope is None else targets != out_of_scope
    if not inside.any():
        raise ValueError("no in-scope row: need one to score")
    heads, counts = _row_values(chosen[inside], targets[inside], sure[inside], losses[inside], len(labels))
    totals = np.asarray(counts.sum(axis=0)).reshape(1, 3, -1)
    shares, is_averaged = _label_shares(totals), np.arange(len(labels)) != out_of_scope
    resamples = _Resamples(len(heads), bootstrap_samples, seed)
    points = _head_scores(heads.sum(axis=0)[None], len(heads)) | _mean_f1s(_f1_sums(totals, shares, is_averaged))
    f1_sums, label_intervals = _resampled_labels(counts, is_averaged, resamples, confidence)
    resampled = _head_scores(resamples.sums(heads), len(heads)) | _mean_f1s(f1_sums)
    point = {name: float(found[0]) for name, found in points.items()}
    interval = {name: percentile_interval(found, confidence) for name, found in resampled.items()}
    per_class = _per_class(shares[0], label_intervals, totals[0, 2], labels)
    named = None if positive is None else per_class[positive]
    return ClassificationScore(
        rows=len(heads),
        accuracy=point["accuracy"],
        accuracy_interval=interval["accuracy"],
        macro_f1=point["macro_f1"],
        macro_f1_interval=interval["macro_f1"],
        micro_f1=point["micro_f1"] if multi_label else None,
        micro_f1_interval=interval["micro_f1"] if multi_label else None,
        ece=point["ece"],
        ece_interval=_reflect(point["ece"], interval["ece"]),
        loss=point["loss"],
        loss_interval=interval["loss"],
        positive_f1=named.f1 if named else None,
        positive_f1_interval=named.f1_interval if named else None,
        per_class=per_class,
        confusion=None if multi_label else _confusion(targets, chosen, len(labels)),
    )


def percentile_interval(values: np.ndarray, confidence: float) -> Interval:
    """The interval that holds this share of resampled values (S,), as much left out below as above."""
    low, high = np.quantile(values, _tails(confidence))
    return float(low), float(high)


def _runners_up(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The likeliest label of each row that is not its target, (N,)."""
    found = np.empty(len(targets), np.int64)
    for rows in _row_blocks(logits):
        others = logits[rows].copy()
        np.put_along_axis(others, targets[rows, None], -np.inf, axis=1)
        found[rows] = others.argmax(axis=1)
    return found


def _row_blocks(logits: np.ndarray) -> Iterator[slice]:
    """Rows of an array (N, C), as many at a time as memory allows."""
    size = max(1, _VALUES_AT_ONCE // max(1, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _check(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, multi_label: bool) -> None:
    rows, count = len(targets), len(labels)
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


def _bin_gaps(confidence: np.ndarray, is_right: np.ndarray, bins: int) -> np.ndarray:
    """Confidence minus rightness of each row's M decisions, summed by bin of confidence: (N, M) twice -> (N, bins)."""
    gaps = np.empty((len(confidence), bins))
    step = max(1, _VALUES_AT_ONCE // confidence.shape[1])
    for start in range(0, len(confidence), step):
        sure, right = confidence[start : start + step], is_right[start : start + step]
        places = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
        places += bins * np.arange(len(sure))[:, None]
        sums = np.bincount(places.ravel(), (sure - right).ravel(), minlength=bins * len(sure))
        gaps[start : start + step] = sums.reshape(-1, bins)
    return gaps


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
    heads = np.column_stack([is_right, losses, _bin_gaps(sure, is_borne_out, BINS) / sure.shape[1]])
    answered, wanted = columns(chosen), columns(targets)
    return heads, sparse.hstack([answered.multiply(wanted), answered, wanted], format="csc")


@dataclass(frozen=True)
class _Resamples:
    """Rows drawn again with replacement: those that metrics.bootstrap_interval draws for this seed."""

    rows: int
    samples: int
    seed: int

    def sums(self, values: Any) -> np.ndarray:
        """Sums over each resample: (rows, K), an array or sparse -> (samples, K)."""
        generator, chunk = np.random.default_rng(self.seed), max(1, _VALUES_AT_ONCE // self.rows)
        sums = []
        for start in range(0, self.samples, chunk):
            size = min(chunk, self.samples - start)
            drawn = generator.integers(0, self.rows, size=(size, self.rows))
            drawn += self.rows * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * self.rows).reshape(size, self.rows)
            sums.append(times.astype(np.float64) @ values)
        return np.concatenate(sums)


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


def _resampled_labels(
    counts: Any, is_averaged: np.ndarray, resamples: _Resamples, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """The resampled sums of _f1_sums, (4, S), and the intervals of each label's shares, (2, 3, labels).

    A block of labels at a time; labels that do not occur have 0.0 throughout.
    """
    labels = len(is_averaged)
    f1_sums, intervals = np.zeros((4, resamples.samples)), np.zeros((2, 3, labels))
    for block in _blocks(counts, labels, resamples.samples):
        drawn = resamples.sums(counts[:, np.concatenate([block, block + labels, block + 2 * labels])])
        sums = drawn.reshape(-1, 3, len(block))
        shares = _label_shares(sums)
        f1_sums += _f1_sums(sums, shares, is_averaged[block])
        intervals[:, :, block] = np.quantile(shares, _tails(confidence), axis=0, overwrite_input=True)
    return f1_sums, intervals


def _blocks(counts: Any, labels: int, samples: int) -> Iterator[np.ndarray]:
    """The labels that occur, as many at a time as memory allows."""
    occurring = np.flatnonzero(np.asarray(counts.sum(axis=0)).reshape(3, labels).sum(axis=0))
    size = max(1, _VALUES_AT_ONCE // (3 * samples))
    for start in range(0, len(occurring), size):
        yield occurring[start : start + size]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0.0 where the whole is nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _tails(confidence: float) -> list[float]:
    return [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]


def _reflect(point: float, interval: Interval) -> Interval:
    """The basic interval of a share from its percentiles, widened to hold the share itself.

    The ECE of a resample exceeds the estimate as the estimate exceeds the truth: the percentiles of 500 rows whose ECE
    is 0.05 hold it in 60 of 100 draws, the basic interval in 86. Near an ECE of 0 this one, too, lies too high.
    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 5.2.
    """
    low, high = interval
    return max(0.0, min(point, 2 * point - high)), min(1.0, max(point, 2 * point - low))


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
