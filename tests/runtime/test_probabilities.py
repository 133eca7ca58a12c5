"""Probabilities of labels: finite, and how sure an answer is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from edgetune.runtime.probabilities import confidences, log_softmax, log_sum_exp, probabilities


def test_the_confidence_of_one_answer_is_its_probability() -> None:
    shares = np.array([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    assert confidences(shares, multi_label=False).tolist() == [0.7, 0.4]


def test_the_confidence_of_several_labels_is_that_of_the_least_certain_decision() -> None:
    shares = np.array([[0.01, 0.02, 0.05], [0.99, 0.6, 0.01], [0.9, 0.3, 0.01]])
    assert confidences(shares, multi_label=True) == pytest.approx([0.95, 0.6, 0.7])


@pytest.mark.parametrize("is_multi", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1e-300, 1e300])
def test_probabilities_of_huge_logits_are_finite(is_multi: bool, temperature: float) -> None:
    logits = np.array([[3e38, -3e38, 0.0], [0.0, 0.0, 0.0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probabilities(logits, temperature=temperature, multi_label=is_multi)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    if not is_multi:
        np.testing.assert_allclose(found.sum(-1), 1)


def test_log_probabilities_are_those_of_logits_of_any_size() -> None:
    logits = np.array([[1.0, 2.0, 4.0], [1e4, -1e4, 0.0]], np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(np.log(probabilities(logits[:1], temperature=1.0, multi_label=False)[0]), abs=1e-6)
    assert found[1] == pytest.approx([0.0, -2e4, -1e4])


def test_the_sum_of_huge_exponentials_has_a_finite_logarithm() -> None:
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 1000.0]], np.float32)
    found = log_sum_exp(logits)
    assert found.dtype == np.float64
    assert found == pytest.approx([np.log(4.0), 1000.0 + np.log(2.0)])
