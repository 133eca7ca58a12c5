"""evaluate/distance.py: how far one model's next-token distributions are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from edgetune.evaluate import distance
from edgetune.evaluate.distance import measure_distance, write_distributions


class Told:
    """A target with given probabilities: one array (tokens, vocabulary) for each row."""

    def __init__(self, *rows: list[list[float]]) -> None:
        self.rows = rows

    def trained_logits(self, _rows: object) -> Iterator[np.ndarray]:
        for row in self.rows:
            yield np.log(np.array(row, np.float32)) + 3.0  # logits know no constant


TRUTH = Told([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], [[0.1, 0.1, 0.8]])


def test_a_model_is_at_no_distance_from_itself(tmp_path):
    write_distributions(TRUTH, [], tmp_path / "d.npy")
    found = measure_distance(TRUTH, [], tmp_path / "d.npy")
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert (found.agreement, found.tokens) == (1.0, 3)


def test_divergence_and_agreement_are_those_that_one_works_out_by_hand(tmp_path):
    write_distributions(TRUTH, [], tmp_path / "d.npy")
    other = Told([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]], [[0.1, 0.1, 0.8]])
    found = measure_distance(other, [], tmp_path / "d.npy")
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 3, rel=1e-4)
    assert found.agreement == pytest.approx(2 / 3)


def test_the_truth_comes_first_divergence_is_not_symmetric(tmp_path):
    sure, unsure = Told([[0.98, 0.01, 0.01]]), Told([[0.4, 0.3, 0.3]])
    write_distributions(sure, [], tmp_path / "sure.npy")
    write_distributions(unsure, [], tmp_path / "unsure.npy")
    there, back = (
        measure_distance(unsure, [], tmp_path / "sure.npy"),
        measure_distance(sure, [], tmp_path / "unsure.npy"),
    )
    assert there.kl == pytest.approx(0.98 * math.log(0.98 / 0.4) + 0.02 * math.log(0.01 / 0.3), rel=1e-3)
    assert back.kl > there.kl > 0


@pytest.mark.parametrize(("bound", "value"), [("MOST_VALUES", 8), ("MOST_TOKENS", 2)])
def test_rows_beyond_what_the_file_holds_are_not_compared(tmp_path, monkeypatch, bound, value):
    monkeypatch.setattr(distance, bound, value)
    write_distributions(TRUTH, [], tmp_path / "d.npy")
    assert measure_distance(TRUTH, [], tmp_path / "d.npy").tokens == 2


def test_without_a_token_there_is_no_distance(tmp_path):
    write_distributions(Told(), [], tmp_path / "d.npy")
    assert measure_distance(TRUTH, [], tmp_path / "d.npy") is None
