"""Logits -> probabilities, and how sure an answer is: on the device, and where thresholds are chosen."""

from __future__ import annotations

import numpy as np

APPLIES = 0.5
"""Where there may be several labels, those of at least this probability are the answer."""


def probabilities(logits: np.ndarray, *, temperature: float, multi_label: bool) -> np.ndarray:
    """Logits (N, labels) -> (N, labels) float64: softmax of logits / temperature, or a sigmoid for each label.

    Finite logits of any size give finite probabilities. Thresholds are chosen by this function too.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: infinity is what is meant
        if multi_label:
            return 0.5 * (1.0 + np.tanh(wide / (2.0 * temperature)))
        shares = np.exp((wide - wide.max(-1, keepdims=True)) / temperature)
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (..., V) -> their logarithms of probabilities, nats, in the same shape and type and summed in it."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Logits (..., V) of any size -> log(sum(exp(logits))) (...), summed in float64."""
    highest = logits.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(logits - highest).sum(-1, dtype=np.float64)) + highest[..., 0])


def confidences(probabilities: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """How sure the answer to each text is, (N, labels) -> (N,): what the threshold is held against, here and where it
    is chosen.

    The probability of the likeliest label; where there may be several, that of the least certain of all decisions, so
    that a text which surely has no label counts as sure.
    """
    if multi_label:
        return np.asarray(np.maximum(probabilities, 1.0 - probabilities).min(-1))
    return np.asarray(probabilities.max(-1))
