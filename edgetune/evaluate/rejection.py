"""Classifiers that may answer "unknown": the confidence below which they do, and what that is worth. Pure functions.

In the flow: classification.confidences of the eval split -> choose_threshold; of the scored rows -> score_rejection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rejection:
    """What a classifier that may answer "unknown" does at a threshold. Shares in 0..1."""

    threshold: float
    """A row is accepted if its confidence is at least this."""
    in_scope_accuracy: float
    """Share of in-scope rows that are accepted and right."""
    in_scope_accepted: float
    out_of_scope_recall: float | None
    """Share of out-of-scope rows that are rejected; None without such rows."""
    false_accept_rate: float
    """Share of unacceptable rows, see acceptable_rows(), that are accepted; 0.0 without such rows."""
    auroc: float | None
    """How well the confidence tells acceptable from unacceptable rows, 0.5 by chance; None if all are of one kind."""


def acceptable_rows(is_right: np.ndarray, is_in_scope: np.ndarray) -> np.ndarray:
    """Which rows may be answered, (N,) bool: those in scope; where all are, those answered rightly."""
    is_in_scope = np.asarray(is_in_scope, bool)
    return np.asarray(is_right, bool) if is_in_scope.all() else is_in_scope


def choose_threshold(confidence: np.ndarray, is_acceptable: np.ndarray, *, false_accept_rate: float) -> float:
    """The least threshold that accepts at most this share of the unacceptable rows; accepted: confidence >= threshold.

    confidence (N,), is_acceptable (N,) bool from acceptable_rows(). 0.0, which rejects nothing, where there is no
    unacceptable row or the share allows all. Else it lies just above, by one step of float64, the most confident
    unacceptable row that must be rejected, and rejects rows tied with that one too: compare in float64. A share below
    one row leaves none, so that all of them are rejected. Raises ValueError if the share is not in 0..1.
    """
    if not 0.0 <= false_accept_rate <= 1.0:
        raise ValueError(f"false_accept_rate is {false_accept_rate}: need a share in 0..1")
    unacceptable = np.sort(np.asarray(confidence, np.float64)[~np.asarray(is_acceptable, bool)])[::-1]
    allowed = math.floor(false_accept_rate * unacceptable.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return float(np.nextafter(unacceptable[allowed], np.inf)) if allowed < unacceptable.size else 0.0


def score_rejection(
    confidence: np.ndarray, is_right: np.ndarray, is_in_scope: np.ndarray, threshold: float
) -> Rejection:
    """What answering "unknown" below the threshold does, (N,) each; is_right is not read where a row is out of scope.

    Raises ValueError without an in-scope row. Sources: the AUROC between in-scope and other rows, or right and wrong
    ones, is that of Hendrycks and Gimpel 2017, arXiv:1610.02136; in-scope accuracy and out-of-scope recall are those of
    Larson et al. 2019, arXiv:1909.02027.
    """
    from sklearn.metrics import roc_auc_score

    confidence = np.asarray(confidence, np.float64)
    is_right, is_in_scope = np.asarray(is_right, bool), np.asarray(is_in_scope, bool)
    if not is_in_scope.any():
        raise ValueError("no in-scope row: need one to score rejection")
    is_accepted, is_acceptable = confidence >= threshold, acceptable_rows(is_right, is_in_scope)
    has_unacceptable = not is_acceptable.all()
    return Rejection(
        threshold=float(threshold),
        in_scope_accuracy=float((is_accepted & is_right)[is_in_scope].mean()),
        in_scope_accepted=float(is_accepted[is_in_scope].mean()),
        out_of_scope_recall=None if is_in_scope.all() else float((~is_accepted)[~is_in_scope].mean()),
        false_accept_rate=float(is_accepted[~is_acceptable].mean()) if has_unacceptable else 0.0,
        auroc=float(roc_auc_score(is_acceptable, confidence)) if is_acceptable.any() and has_unacceptable else None,
    )
