"""Answers of "unknown": the confidence below which a text gets no label, and what that is worth. Pure functions.

In the flow: probabilities.confidences of the eval split -> choose_threshold for a stated false-accept rate, or
learn_threshold from rows out of scope; of the scored rows -> score_rejection.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from edgetune.evaluate.resample import Bootstrap, Interval


@dataclass(frozen=True)
class Rejection:
    """What a model that may answer "unknown" does at a threshold. Shares in 0..1, with bootstrap intervals."""

    threshold: float
    """A row is accepted if its confidence is at least this."""
    in_scope_accuracy: float
    """Share of in-scope rows that are accepted and right."""
    in_scope_accuracy_interval: Interval
    in_scope_accepted: float
    in_scope_accepted_interval: Interval
    out_of_scope_recall: float | None
    """Share of out-of-scope rows that are rejected; None without such rows."""
    out_of_scope_recall_interval: Interval | None
    false_accept_rate: float
    """Share of unacceptable rows, see acceptable_rows(), that are accepted; 0.0 without such rows."""
    false_accept_rate_interval: Interval
    auroc: float | None
    """How well the confidence tells acceptable from unacceptable rows, 0.5 by chance; None if all are of one kind."""
    auroc_interval: Interval | None


def acceptable_rows(is_right: np.ndarray, is_in_scope: np.ndarray) -> np.ndarray:
    """Which rows may be answered, (N,) bool: those in scope; where all are, those answered rightly."""
    is_in_scope = np.asarray(is_in_scope, bool)
    return np.asarray(is_right, bool) if is_in_scope.all() else is_in_scope


def choose_threshold(confidences: np.ndarray, is_acceptable: np.ndarray, *, false_accept_rate: float) -> float:
    """The least threshold that accepts at most this share of the unacceptable rows; accepted: confidence >= threshold.

    confidences (N,), is_acceptable (N,) bool from acceptable_rows(). 0.0, which rejects nothing, where there is no
    unacceptable row or the share allows all. Else it lies just above, by one step of float64, the most confident
    unacceptable row that must be rejected, and rejects rows tied with that one too: compare in float64. A share below
    one row leaves none, so that all of them are rejected. Raises ValueError if the share is not in 0..1.
    """
    if not 0.0 <= false_accept_rate <= 1.0:
        raise ValueError(f"false_accept_rate is {false_accept_rate}: need a share in 0..1")
    unacceptable = np.sort(np.asarray(confidences, np.float64)[~np.asarray(is_acceptable, bool)])[::-1]
    allowed = math.floor(false_accept_rate * unacceptable.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return float(np.nextafter(unacceptable[allowed], np.inf)) if allowed < unacceptable.size else 0.0


def learn_threshold(confidences: np.ndarray, is_right: np.ndarray, is_in_scope: np.ndarray) -> float:
    """The threshold with the highest mean of in-scope accuracy and out-of-scope recall, the least of equally good ones.

    confidences (N,), a row that is rejected whatever the threshold below 0; is_right and is_in_scope (N,) bool, of rows
    of both kinds. It is 0.0 or lies half-way between two rows. One more row out of scope counts as accepted at any
    threshold: a single one that looks sure does not make it reject half of all that it knows. For the two
    shares see score_rejection. Raises ValueError if all rows are of one kind.
    """
    sure, is_in_scope = np.asarray(confidences, np.float64), np.asarray(is_in_scope, bool)
    if is_in_scope.all() or not is_in_scope.any():
        raise ValueError("need rows in scope and out of scope to learn a threshold from")
    levels = np.unique(sure[sure >= 0.0])
    above = np.nextafter(levels, np.inf)
    thresholds = np.r_[0.0, np.maximum((levels[:-1] + levels[1:]) / 2, above[:-1]), above[-1:]]
    right, outside = np.sort(sure[is_in_scope & is_right]), np.sort(sure[~is_in_scope])
    accuracy = (right.size - np.searchsorted(right, thresholds)) / is_in_scope.sum()
    recall = np.searchsorted(outside, thresholds) / (outside.size + 1)
    return float(thresholds[(accuracy + recall).argmax()])


def score_rejection(
    confidence: np.ndarray,
    is_right: np.ndarray,
    is_in_scope: np.ndarray,
    threshold: float,
    *,
    bootstrap: Bootstrap,
) -> Rejection:
    """What answering "unknown" below the threshold does, (N,) each; is_right is not read where a row is out of scope.

    Raises ValueError without an in-scope row. Sources: the AUROC between in-scope and other rows, or right and wrong
    ones, is that of Hendrycks and Gimpel 2017, arXiv:1610.02136; in-scope accuracy and out-of-scope recall are those of
    Larson et al. 2019, arXiv:1909.02027.
    """
    confidence = np.asarray(confidence, np.float64)
    is_right, is_in_scope = np.asarray(is_right, bool), np.asarray(is_in_scope, bool)
    if not is_in_scope.any():
        raise ValueError("no in-scope row: need one to score rejection")
    is_accepted, is_acceptable = confidence >= threshold, acceptable_rows(is_right, is_in_scope)

    def share(found: np.ndarray, among: np.ndarray) -> tuple[float, Interval]:
        """The share of the rows `among` that are `found`, 0.0 of none, and its interval over draws of such rows."""
        if not among.any():
            return 0.0, (0.0, 0.0)
        return float(found[among].mean()), bootstrap.mean_interval(found[among])

    accuracy, accuracy_interval = share(is_accepted & is_right, is_in_scope)
    accepted, accepted_interval = share(is_accepted, is_in_scope)
    recall, recall_interval = share(~is_accepted, ~is_in_scope)
    false_accepts, false_accepts_interval = share(is_accepted, ~is_acceptable)
    has_both = bool(is_acceptable.any() and not is_acceptable.all())
    has_outside = not is_in_scope.all()
    aurocs = _aurocs(confidence, is_acceptable, bootstrap) if has_both else np.empty(0)
    return Rejection(
        threshold=float(threshold),
        in_scope_accuracy=accuracy,
        in_scope_accuracy_interval=accuracy_interval,
        in_scope_accepted=accepted,
        in_scope_accepted_interval=accepted_interval,
        out_of_scope_recall=recall if has_outside else None,
        out_of_scope_recall_interval=recall_interval if has_outside else None,
        false_accept_rate=false_accepts,
        false_accept_rate_interval=false_accepts_interval,
        auroc=float(aurocs[0]) if has_both else None,
        auroc_interval=bootstrap.interval(aurocs[1:]) if len(aurocs) > 1 else None,
    )


def _aurocs(confidence: np.ndarray, is_acceptable: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """The AUROC of the rows, then that of each resample which holds rows of both kinds.

    The share of pairs, one acceptable and one not, whose acceptable row has the higher confidence; ties count half.
    """
    order = np.argsort(confidence, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(confidence[order]) > 0])
    kind, rows = is_acceptable[order], len(confidence)

    def of_rows(times: np.ndarray) -> np.ndarray:
        """The AUROC where each row counts so many times, (S, rows) -> (at most S,)."""
        good, bad = (np.add.reduceat(times * of, starts, axis=1) for of in (kind, ~kind))
        below, pairs = np.cumsum(bad, axis=1) - bad / 2, good.sum(axis=1) * bad.sum(axis=1)
        return np.asarray((good * below).sum(axis=1)[pairs > 0] / pairs[pairs > 0])

    return np.concatenate([of_rows(times) for times in itertools.chain([np.ones((1, rows))], bootstrap.draws(rows))])
