"""evaluate/label_distance.py: how far a classifier's labels are from the fine-tune's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edgetune.evaluate.distance import distance_of_request
from edgetune.evaluate.label_distance import LabelDistributions
from edgetune.evaluate.label_rows import LabelRow


class Told:
    """Gives each text the logits that it is told, and counts the texts."""

    def __init__(self, logits: dict[str, list[float]]) -> None:
        self.told, self.texts = logits, 0

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return np.array([self.told[text] for text in texts], np.float32)


ROWS = [LabelRow(text, (0,), text) for text in ("one", "two")]
TUNED = Told({"one": [math.log(0.5), math.log(0.25), math.log(0.25)], "two": [0.0, 0.0, 9.0]})


def measured(tmp_path, target: Told, *, is_reference: bool = False, multi_label: bool = False):
    request = {"distributions": str(tmp_path / "d.npy"), "is_reference": is_reference}
    return distance_of_request(request, LabelDistributions(target, multi_label=multi_label), ROWS)


def test_the_fine_tune_is_at_no_distance_from_itself_and_others_where_one_works_out(tmp_path):
    assert measured(tmp_path, TUNED, is_reference=True).kl == pytest.approx(0.0, abs=1e-6)
    other = Told({**TUNED.told, "one": [math.log(0.25), math.log(0.5), math.log(0.25)]})
    found = measured(tmp_path, other)
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2, rel=1e-4)
    assert (found.agreement, found.tokens) == (0.5, 2)


def test_of_several_labels_each_is_a_decision_of_its_own(tmp_path):
    """Probabilities of 1/2 and 3/4 against 1/2 and 1/2."""
    measured(tmp_path, Told({"one": [0.0, math.log(3)], "two": [0.0, 0.0]}), is_reference=True, multi_label=True)
    found = measured(tmp_path, Told({"one": [0.0, 0.0], "two": [0.0, 0.0]}), multi_label=True)
    assert found.tokens == 4
    assert found.kl == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4, rel=1e-4)


def test_without_the_fine_tune_s_there_is_nothing_to_compare_with(tmp_path):
    assert measured(tmp_path, TUNED) is None
    assert distance_of_request({"distributions": None}, LabelDistributions(TUNED, multi_label=False), ROWS) is None


def test_a_batch_is_labelled_once_for_scores_and_distance():
    target = Told(TUNED.told)
    told = LabelDistributions(target, multi_label=False)
    told.logits(["one", "two"])
    assert len(np.concatenate([*told.trained_logits(ROWS)])) == 2
    assert target.texts == 2
