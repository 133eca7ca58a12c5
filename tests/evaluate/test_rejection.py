"""evaluate/rejection.py: the threshold of a classifier that may answer "unknown", and what it is worth."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from edgetune.evaluate import rejection, resample
from edgetune.evaluate.rejection import acceptable_rows, choose_threshold, learn_threshold
from edgetune.evaluate.resample import Bootstrap


def score_rejection(sure, is_right, is_in_scope, threshold, **settings):
    return rejection.score_rejection(sure, is_right, is_in_scope, threshold, bootstrap=Bootstrap(**settings))


def drawn(rows=300):
    """Confidences of a classifier that tells a part of the rows; whether these are right, and in scope."""
    generator = np.random.default_rng(1)
    is_in_scope = generator.random(rows) < 0.7
    sure = np.where(is_in_scope, generator.beta(5, 2, rows), generator.beta(2, 4, rows))
    return np.round(sure, 2), generator.random(rows) < 0.9, is_in_scope


def test_rows_in_scope_are_acceptable_when_others_are_not():
    found = acceptable_rows(np.array([True, False, False]), np.array([True, True, False]))
    assert found.tolist() == [True, True, False]


def test_right_rows_are_acceptable_when_all_are_in_scope():
    assert acceptable_rows(np.array([True, False]), np.array([True, True])).tolist() == [True, False]


def test_the_threshold_is_the_least_that_keeps_the_false_accept_rate():
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    is_acceptable = np.array([False, False, False, False, True])
    threshold = choose_threshold(confidence, is_acceptable, false_accept_rate=0.25)
    assert 0.3 < threshold <= np.nextafter(0.3, 1)
    assert (confidence >= threshold).tolist() == [False, False, False, True, True]


def test_a_rate_below_one_row_rejects_every_unacceptable_row():
    threshold = choose_threshold(np.array([0.7, 0.8, 0.9]), np.array([False, False, True]), false_accept_rate=0.49)
    assert threshold == np.nextafter(0.8, 1)


def test_certain_mistakes_are_rejected_with_all_else():
    threshold = choose_threshold(np.array([1.0, 1.0]), np.array([False, True]), false_accept_rate=0.0)
    assert 1.0 < threshold < 1.0 + 1e-15


def test_rows_tied_with_the_first_to_reject_are_rejected_too():
    confidence = np.array([0.9, 0.5, 0.5, 0.5])
    threshold = choose_threshold(confidence, np.zeros(4, bool), false_accept_rate=0.5)
    assert (confidence >= threshold).tolist() == [True, False, False, False]


def test_a_share_that_rounding_puts_below_its_row_still_allows_it():
    confidence = np.arange(100) / 100
    threshold = choose_threshold(confidence, np.zeros(100, bool), false_accept_rate=0.29)
    assert (confidence >= threshold).sum() == 29


@pytest.mark.parametrize(
    ("is_acceptable", "rate"), [([True, True], 0.0), ([False, False], 1.0)], ids=["none to reject", "all allowed"]
)
def test_nothing_is_rejected_where_nothing_must_be(is_acceptable, rate):
    assert choose_threshold(np.array([0.2, 0.3]), np.array(is_acceptable), false_accept_rate=rate) == 0.0


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_share_is_an_error(rate):
    with pytest.raises(ValueError, match=r"need a share in 0\.\.1"):
        choose_threshold(np.array([0.5]), np.array([True]), false_accept_rate=rate)


def learnt(inside, outside, wrong=()):
    """The threshold learnt from confidences of rows in scope that are right, out of scope, and in scope but wrong."""
    sure = np.r_[inside, wrong, outside].astype(float)
    is_in_scope = np.arange(len(sure)) < len(inside) + len(wrong)
    return learn_threshold(sure, np.arange(len(sure)) < len(inside), is_in_scope)


def test_a_threshold_is_learnt_half_way_between_rows_that_differ():
    assert learnt([0.9, 0.8, 0.6], [0.1, 0.4]) == pytest.approx(0.5)


def test_rows_that_are_rejected_at_any_threshold_ask_for_none():
    assert learnt([0.9, 0.2], [-1.0, -1.0, -1.0]) == 0.0


def test_wrong_answers_in_scope_do_not_hold_the_threshold_down():
    assert learnt([0.9], [0.4, 0.5], wrong=[0.3, 0.45]) == pytest.approx(0.7)


def test_a_single_sure_row_out_of_scope_does_not_reject_most_of_the_rest():
    assert learnt(np.linspace(0.5, 0.95, 10), [0.99]) == 0.0


def test_no_threshold_is_better_than_the_one_learnt():
    sure, is_right, is_in_scope = drawn()
    found = learn_threshold(sure, is_right, is_in_scope)

    def mean(threshold):
        accuracy = np.mean((sure >= threshold)[is_in_scope] & is_right[is_in_scope])
        outside = sure[~is_in_scope]
        return accuracy + np.sum(outside < threshold) / (len(outside) + 1)

    assert mean(found) == max(mean(threshold) for threshold in np.linspace(0.0, 1.01, 2021))
    assert 0.0 < found < 1.0


@pytest.mark.parametrize("is_in_scope", [True, False])
def test_rows_of_one_kind_teach_no_threshold(is_in_scope):
    with pytest.raises(ValueError, match="in scope and out of scope"):
        learn_threshold(np.ones(2), np.ones(2, bool), np.full(2, is_in_scope))


def test_rejection_is_counted_over_in_scope_and_out_of_scope_rows():
    confidence = np.array([0.9, 0.8, 0.4, 0.7, 0.7, 0.3, 0.2, 0.1])
    is_right = np.array([True, False, True, True, True, False, False, False])
    is_in_scope = np.array([True, True, True, True, False, False, False, False])
    found = score_rejection(confidence, is_right, is_in_scope, 0.7)
    assert found.threshold == 0.7
    assert found.in_scope_accuracy == 0.5
    assert found.in_scope_accepted == 0.75
    assert found.out_of_scope_recall == 0.75
    assert found.false_accept_rate == 0.25
    assert found.auroc == pytest.approx(roc_auc_score(is_in_scope, confidence))
    assert found.auroc == pytest.approx((4 + 4 + 3 + 3.5) / 16)


def test_without_out_of_scope_rows_wrong_answers_are_what_must_be_rejected():
    confidence, is_right = np.array([0.9, 0.8, 0.6, 0.2]), np.array([True, False, True, False])
    found = score_rejection(confidence, is_right, np.ones(4, bool), 0.5)
    assert found.out_of_scope_recall is None
    assert (found.in_scope_accuracy, found.in_scope_accepted) == (0.5, 0.75)
    assert found.false_accept_rate == 0.5
    assert found.auroc == 0.75


@pytest.mark.parametrize(("confidence", "expected"), [([0.9, 0.1], 1.0), ([0.1, 0.9], 0.0), ([0.5, 0.5], 0.5)])
def test_the_auroc_is_one_for_perfect_and_zero_for_inverted_confidence(confidence, expected):
    found = score_rejection(np.array(confidence), np.array([True, False]), np.array([True, False]), 0.5)
    assert found.auroc == expected


def test_rows_that_are_all_right_have_no_false_accepts_and_no_auroc():
    found = score_rejection(np.array([0.9, 0.8]), np.array([True, True]), np.array([True, True]), 0.0)
    assert (found.in_scope_accuracy, found.false_accept_rate, found.auroc) == (1.0, 0.0, None)


def test_the_chosen_threshold_keeps_its_rate_when_scored():
    generator = np.random.default_rng(0)
    is_in_scope = generator.random(500) < 0.7
    confidence = np.where(is_in_scope, generator.beta(5, 2, 500), generator.beta(2, 4, 500))
    is_acceptable = acceptable_rows(is_in_scope, is_in_scope)
    threshold = choose_threshold(confidence, is_acceptable, false_accept_rate=0.05)
    found = score_rejection(confidence, is_in_scope, is_in_scope, threshold)
    assert found.false_accept_rate <= 0.05 < found.false_accept_rate + 1 / (~is_in_scope).sum()
    assert found.out_of_scope_recall == pytest.approx(1 - found.false_accept_rate)


def test_intervals_of_shares_are_those_of_the_other_metrics():
    sure, is_right, is_in_scope = drawn()
    found = score_rejection(sure, is_right, is_in_scope, 0.5, samples=200, seed=4)
    accepted, settings = sure >= 0.5, {"samples": 200, "confidence": 0.95, "seed": 4}
    expected = {
        "in_scope_accuracy": (accepted & is_right & is_in_scope, is_in_scope),
        "in_scope_accepted": (accepted & is_in_scope, is_in_scope),
        "out_of_scope_recall": (~accepted & ~is_in_scope, ~is_in_scope),
        "false_accept_rate": (accepted & ~is_in_scope, ~is_in_scope),
    }
    for name, (tops, bottoms) in expected.items():
        low, high = getattr(found, f"{name}_interval")
        assert (low, high) == pytest.approx(Bootstrap(**settings).mean_interval(tops[bottoms])), name
        assert low < getattr(found, name) < high


def test_the_interval_of_the_auroc_is_that_of_scikit_learn_on_each_resample():
    sure, is_right, is_in_scope = drawn(80)
    settings = {"samples": 50, "confidence": 0.9, "seed": 3}
    found = score_rejection(sure, is_right, is_in_scope, 0.5, **settings)
    surest_last = np.argsort(sure, kind="stable")
    rows = surest_last[np.random.default_rng(3).integers(0, 80, size=(50, 80))]
    areas = [roc_auc_score(is_in_scope[row], sure[row]) for row in rows]
    assert found.auroc == pytest.approx(roc_auc_score(is_in_scope, sure))
    assert found.auroc_interval == pytest.approx(tuple(np.quantile(areas, [0.05, 0.95])))


def test_memory_is_bounded_without_changing_the_interval_of_the_auroc(monkeypatch):
    whole = score_rejection(*drawn(50), 0.5, samples=200)
    monkeypatch.setattr(resample, "VALUES_AT_ONCE", 500)
    assert score_rejection(*drawn(50), 0.5, samples=200).auroc_interval == pytest.approx(whole.auroc_interval)


def test_resamples_are_not_held_all_at_once(monkeypatch):
    monkeypatch.setattr(resample, "VALUES_AT_ONCE", 20_000)
    tracemalloc.start()
    score_rejection(*drawn(2000), 0.5, samples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # all draws of the AUROC, int64, are 16 MB


def test_what_is_not_there_has_no_interval():
    found = score_rejection(np.array([0.9, 0.8]), np.array([True, True]), np.array([True, True]), 0.0)
    assert found.in_scope_accuracy_interval == (1.0, 1.0)
    assert (found.out_of_scope_recall_interval, found.auroc_interval) == (None, None)


def test_no_in_scope_row_is_an_error():
    with pytest.raises(ValueError, match="no in-scope row"):
        score_rejection(np.array([0.5]), np.array([False]), np.array([False]), 0.5)


def test_a_few_rows_out_of_scope_that_are_all_found_leave_no_doubt_below_one():
    """A resample without such a row says nothing of them."""
    sure = np.r_[np.full(100, 0.9), np.full(3, 0.1)]
    found = score_rejection(sure, np.ones(103, bool), np.arange(103) < 100, 0.5, samples=200)
    assert (found.out_of_scope_recall, found.out_of_scope_recall_interval) == (1.0, (1.0, 1.0))
