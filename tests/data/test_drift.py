"""Drift: what is told from chance, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.data.drift import Rows, drift, typical_words


def rows(seed, *, count=200, length=10.0, vocabulary=50, first=0, share=0.5):
    draw = np.random.default_rng(seed)
    ids = [(first + draw.integers(0, vocabulary, max(1, draw.poisson(length)))).tolist() for _ in range(count)]
    labels = [("a",) if draw.random() < share else ("b",) for _ in ids]
    return Rows(ids, [" ".join(f"w{token}" for token in row) for row in ids], labels)


def found(old, new):
    return {measure.name: measure for measure in drift(old, new).measures}


def test_rows_of_the_same_kind_do_not_drift_more_often_than_chance_says():
    seen = [measure.is_drift for seed in range(12) for measure in drift(rows(seed), rows(100 + seed)).measures]
    assert sum(seen) / len(seen) < 0.15  # 0.05 is meant; 48 draws, which are not independent


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("length", {"length": 14.0}),
        ("vocabulary", {"vocabulary": 30}),
        ("unseen", {"first": 10}),
        ("labels", {"share": 0.8}),
    ],
)
def test_each_change_is_seen_by_its_own_measure(name, changed):
    assert found(rows(0), rows(1, **changed))[name].is_drift


def test_values_are_those_of_hand_made_rows():
    old = Rows([[1, 2], [1, 2]], ["", ""], [("a",), ("a",)])
    new = Rows([[3, 3, 3, 3], [1, 2, 1, 2]], ["", ""], [("b",), ("a",)])
    values = {name: measure.value for name, measure in found(old, new).items()}
    assert values["length"] == 1.0
    assert values["unseen"] == 0.5
    assert values["labels"] == 0.5
    # p = (1/2, 1/2, 0), q = (1/4, 1/4, 1/2): half of KL(p, m) + KL(q, m) in bits.
    p, q = np.array([0.5, 0.5, 0]), np.array([0.25, 0.25, 0.5])
    middle = (p + q) / 2
    expected = (p[:2] * np.log2(p[:2] / middle[:2])).sum() / 2 + (q * np.log2(q / middle)).sum() / 2
    assert values["vocabulary"] == pytest.approx(expected)
    assert drift(old, new).labels == {"a": (1.0, 0.5), "b": (0.0, 0.5)}


def test_texts_without_labels_have_no_label_measure():
    plain = Rows([[1, 2]], ["a b"], [()])
    assert [measure.name for measure in drift(plain, plain).measures] == ["length", "vocabulary", "unseen"]


def test_typical_words_are_those_that_only_new_rows_are_full_of():
    old = ["turn on the lamp", "turn off the lamp"] * 20
    new = ["play the song", "play the album"] * 20
    assert typical_words(old, new)[0] == "play"
    assert "the" not in typical_words(old, new)
    assert typical_words(old, old) == ()
    assert typical_words([""], [""]) == ()
