"""Scores and calibration of classifiers: edgetune/evaluate/label_metrics.py, calibration.py and resample.py."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import (
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from edgetune.evaluate import label_metrics, labeller, resample
from edgetune.evaluate.calibration import BINS, TEMPERATURES, bin_gaps, fit_temperature, row_losses
from edgetune.evaluate.label_metrics import Labels, answers
from edgetune.evaluate.resample import Bootstrap
from edgetune.runtime import classifier as device
from edgetune.runtime.probabilities import probabilities

LABELS = ("a", "b", "c", "d")


def score(shares, targets, labels=LABELS, *, multi_label=False, losses=None, bootstrap_samples=200, **settings):
    shares, targets = np.asarray(shares), np.asarray(targets)
    losses = np.zeros(len(targets)) if losses is None else losses
    named = {key.removesuffix("_label"): settings.pop(key) for key in list(settings) if key.endswith("_label")}
    names, bootstrap = Labels(labels, multi_label, **named), Bootstrap(bootstrap_samples, **settings)
    return label_metrics.score(shares, targets, labels=names, losses=losses, bootstrap=bootstrap)


def expected_calibration_error(confidence, is_right, bins=BINS):
    """Over the rows of a single answer each, (N,) both."""
    gaps = bin_gaps(confidence[:, None], is_right[:, None], bins=bins)
    return np.abs(gaps.sum(axis=0)).sum() / len(gaps)


def points(row):
    """Precision, recall, F1 and support of a label, without intervals."""
    return row.precision, row.recall, row.f1, row.support


def certain(chosen, count=4):
    """Probabilities of a classifier that is sure of its answers."""
    return np.eye(count)[np.asarray(chosen)]


def drawn(rows=400, count=4, *, seed=0, strength=2.0):
    """Logits (N, C) and targets drawn from exactly their softmax."""
    generator = np.random.default_rng(seed)
    logits = strength * generator.normal(size=(rows, count))
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


def drawn_multi(rows=400, count=4, *, seed=0):
    """Logits (N, C) and targets (N, C) bool drawn from exactly their sigmoids."""
    generator = np.random.default_rng(seed)
    logits = 2.0 * generator.normal(size=(rows, count))
    return logits, generator.random(logits.shape) < 1 / (1 + np.exp(-logits))


def test_the_softmax_of_logits_over_the_temperature_is_the_hand_computed_one():
    found = probabilities(np.array([[2.0 * math.log(3.0), 0.0]]), temperature=2.0, multi_label=False)
    assert found == pytest.approx(np.array([[0.75, 0.25]]))


def test_of_many_labels_each_has_its_own_sigmoid():
    found = probabilities(
        np.array([[2.0 * math.log(3.0), 0.0, -2.0 * math.log(3.0)]]), temperature=2.0, multi_label=True
    )
    assert found == pytest.approx(np.array([[0.75, 0.5, 0.25]]))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_huge_logits_give_finite_probabilities_and_losses(multi_label, temperature):
    logits = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], np.float32)
    targets = np.array([[True, False], [True, False]]) if multi_label else np.array([0, 0])
    shares = probabilities(logits, temperature=temperature, multi_label=multi_label)
    losses = row_losses(logits, targets, temperature=temperature, multi_label=multi_label)
    assert shares == pytest.approx(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert losses == pytest.approx([0.0, (1000.0 if multi_label else 2000.0) / temperature])
    found = score(shares, targets, ("a", "b"), multi_label=multi_label, losses=losses)
    assert np.isfinite([found.accuracy, found.macro_f1, found.ece, found.loss]).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_those_of_the_device_to_the_last_bit(multi_label):
    logits = (10.0 * np.random.default_rng(0).normal(size=(200, 7))).astype(np.float32)
    here = labeller.probabilities(logits, temperature=1.7, multi_label=multi_label)
    there = device.probabilities(logits, temperature=1.7, multi_label=multi_label)
    assert np.array_equal(here, there)


def test_the_first_of_equally_likely_labels_is_answered():
    assert answers(np.array([[0.2, 0.4, 0.4]]), multi_label=False).tolist() == [1]


def test_of_many_labels_all_at_a_half_and_above_are_answered():
    assert answers(np.array([[0.5, 0.49, 0.9]]), multi_label=True).tolist() == [[True, False, True]]


def test_the_confidence_is_that_of_the_device():
    assert label_metrics.confidences is labeller.confidences is device.confidences


def test_losses_of_rows_are_those_of_scikit_learn():
    logits, targets = drawn()
    found = row_losses(logits, targets, temperature=1.5, multi_label=False).mean()
    shares = probabilities(logits, temperature=1.5, multi_label=False)
    assert found == pytest.approx(log_loss(targets, shares, labels=range(4)))


def test_the_loss_of_a_multi_label_row_is_the_mean_over_its_labels():
    losses = row_losses(np.array([[math.log(3.0), 0.0]]), np.array([[True, False]]), temperature=1.0, multi_label=True)
    assert losses == pytest.approx([(-math.log(0.75) - math.log(0.5)) / 2])


@pytest.mark.parametrize("scaling", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("draw", "multi_label"), [(drawn, False), (drawn_multi, True)])
def test_the_temperature_undoes_a_known_scaling_of_the_logits(draw, multi_label, scaling):
    logits, targets = draw(4000)
    found = fit_temperature(scaling * logits, targets, multi_label=multi_label)
    assert found == pytest.approx(scaling, rel=0.06)  # three standard errors at 4,000 rows are some 6 %


def test_the_temperature_lowers_the_loss():
    logits, targets = drawn(200)
    found = fit_temperature(3.0 * logits, targets, multi_label=False)
    before, after = (
        row_losses(3.0 * logits, targets, temperature=temperature, multi_label=False).mean()
        for temperature in (1.0, found)
    )
    assert after < before


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_temperature_is_fitted_without_a_copy_of_the_logits(multi_label, monkeypatch):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 2000)).astype(np.float32)
    targets = generator.integers(0, 2000, 500)
    if multi_label:
        targets = generator.random(logits.shape) < 0.01
    whole = fit_temperature(logits, targets, multi_label=multi_label)
    monkeypatch.setattr(resample, "VALUES_AT_ONCE", 20_000)
    tracemalloc.start()
    found = fit_temperature(logits, targets, multi_label=multi_label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx(whole, rel=1e-5)
    assert peak < logits.nbytes / 2


def test_logits_that_are_all_wrong_get_the_highest_temperature():
    logits = np.array([[30.0, 0.0], [0.0, 30.0]] * 10)
    assert fit_temperature(logits, np.array([1, 0] * 10), multi_label=False) == pytest.approx(20.0, rel=1e-4)


def test_rows_that_are_all_right_leave_a_confidence_that_their_number_supports():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]] * 10)
    found = fit_temperature(logits, np.array([0, 1] * 10), multi_label=False)
    shares = probabilities(logits, temperature=found, multi_label=False)
    assert shares.max() == pytest.approx(20.5 / 21, abs=1e-4)  # half a row of 21 is counted as wrong


def test_many_labels_that_are_all_right_leave_a_confidence_that_their_number_supports():
    targets = np.array([[True, False], [False, True]] * 5)
    found = fit_temperature(np.where(targets, 4.0, -4.0), targets, multi_label=True)
    shares = probabilities(np.array([[4.0]]), temperature=found, multi_label=True)
    assert shares.item() == pytest.approx(20.5 / 21, abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64)),
        (np.array([[7.0], [1.0]]), np.array([0, 0])),
        (np.zeros((5, 3)), np.array([0, 1, 2, 0, 1])),
    ],
    ids=["no rows", "one label", "equal logits"],
)
def test_rows_that_tell_nothing_leave_the_temperature_at_one(logits, targets):
    assert fit_temperature(logits, targets, multi_label=False) == 1.0


@pytest.mark.parametrize("target", [0, 1])
def test_one_row_gives_a_temperature_within_bounds(target):
    low, high = TEMPERATURES
    assert low <= fit_temperature(np.array([[1000.0, -1000.0]]), np.array([target]), multi_label=False) <= high


def test_the_same_rows_give_the_same_temperature():
    logits, targets = drawn(50)
    assert fit_temperature(logits, targets, multi_label=False) == fit_temperature(logits, targets, multi_label=False)


def test_the_calibration_error_weighs_the_gap_of_each_bin_by_its_rows():
    confidence, is_right = np.array([0.9, 0.9, 0.9, 0.6]), np.array([True, True, False, False])
    found = expected_calibration_error(confidence, is_right, bins=5)
    assert found == pytest.approx((3 * abs(0.9 - 2 / 3) + 1 * 0.6) / 4)


def test_gaps_of_one_bin_cancel_and_gaps_of_two_do_not():
    confidence, is_right = np.array([0.1, 0.9]), np.array([True, False])
    assert expected_calibration_error(confidence, is_right, bins=1) == pytest.approx(0.0)
    assert expected_calibration_error(confidence, is_right, bins=2) == pytest.approx(0.9)


def test_a_confidence_at_the_edge_belongs_to_the_bin_below():
    found = expected_calibration_error(np.array([0.5, 0.4]), np.array([True, False]), bins=2)
    assert found == pytest.approx(abs(0.9 - 1.0) / 2)


@pytest.mark.parametrize(("is_right", "expected"), [(True, 0.0), (False, 1.0)])
def test_certainty_has_no_calibration_error_when_right_and_the_greatest_when_wrong(is_right, expected):
    assert expected_calibration_error(np.ones(5), np.full(5, is_right)) == expected


def test_confidence_zero_falls_into_the_first_bin():
    assert expected_calibration_error(np.zeros(3), np.zeros(3, bool)) == 0.0


def test_accuracy_macro_f1_and_confusion_are_the_hand_computed_ones():
    found = score(certain([0, 0, 1, 1], 2), [0, 1, 1, 1], ("ham", "spam"), positive_label="spam")
    assert found.rows == 4
    assert found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found.positive_f1 == pytest.approx(4 / 5)
    assert found.confusion == ((1, 0), (1, 2))
    assert [(row.label, row.precision, row.recall, row.support) for row in found.per_class] == [
        ("ham", 0.5, 1.0, 1),
        ("spam", 1.0, pytest.approx(2 / 3), 3),
    ]


def test_scores_are_those_of_scikit_learn():
    logits, targets = drawn(300, 6)
    shares = probabilities(logits, temperature=1.0, multi_label=False)
    losses = row_losses(logits, targets, temperature=1.0, multi_label=False)
    found, chosen = score(shares, targets, tuple("abcdef"), losses=losses), shares.argmax(axis=1)
    expected = np.array(precision_recall_fscore_support(targets, chosen)).T
    assert [points(row) for row in found.per_class] == [pytest.approx(tuple(row)) for row in expected]
    assert found.macro_f1 == pytest.approx(f1_score(targets, chosen, average="macro"))
    assert found.confusion == tuple(map(tuple, confusion_matrix(targets, chosen).tolist()))
    assert found.loss == pytest.approx(log_loss(targets, shares))
    assert found.ece == pytest.approx(expected_calibration_error(shares.max(axis=1), chosen == targets))


def test_multi_label_scores_are_those_of_scikit_learn():
    logits, targets = drawn_multi(300)
    shares = probabilities(logits, temperature=1.0, multi_label=True)
    losses = row_losses(logits, targets, temperature=1.0, multi_label=True)
    found = score(shares, targets, multi_label=True, positive_label="c", losses=losses)
    chosen = shares >= 0.5
    expected = np.array(precision_recall_fscore_support(targets, chosen)).T
    assert [points(row) for row in found.per_class] == [pytest.approx(tuple(row)) for row in expected]
    assert found.accuracy == pytest.approx((targets == chosen).all(axis=1).mean())
    assert found.macro_f1 == pytest.approx(f1_score(targets, chosen, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(targets, chosen, average="micro"))
    assert found.positive_f1 == pytest.approx(f1_score(targets[:, 2], chosen[:, 2]))
    assert found.loss == pytest.approx(losses.mean())
    assert found.ece == pytest.approx(expected_calibration_error(shares.ravel(), targets.ravel()))
    assert found.confusion is None


def test_a_label_in_neither_truth_nor_answers_stays_out_of_the_macro_f1():
    targets, chosen = [0, 0, 2, 2], [0, 2, 2, 1]
    found = score(certain(chosen), targets)
    report = classification_report(targets, chosen, labels=[0, 1, 2], output_dict=True, zero_division=0.0)
    assert found.macro_f1 == pytest.approx(report["macro avg"]["f1-score"])
    nothing = (0.0, 0.0)
    assert found.per_class[3] == label_metrics.ClassScore("d", 0.0, nothing, 0.0, nothing, 0.0, nothing, 0)


def test_a_rare_label_that_a_resample_misses_does_not_lower_the_macro_f1():
    targets = [0] * 30 + [1]
    found = score(certain(targets, 2), targets, ("a", "b"))
    assert found.macro_f1_interval == (1.0, 1.0)


def test_a_classifier_that_always_answers_one_label_finds_only_that():
    found = score(certain([1] * 4), [0, 1, 2, 3])
    assert [row.recall for row in found.per_class] == [0.0, 1.0, 0.0, 0.0]
    assert found.macro_f1 == pytest.approx((2 * 1 / 5) / 4)


def test_one_row_has_intervals_of_no_width():
    found = score([[0.1, 0.6, 0.2, 0.1]], [1], losses=np.array([-math.log(0.6)]))
    assert found.accuracy_interval == (1.0, 1.0)
    assert found.ece_interval == pytest.approx((0.4, 0.4))
    assert found.loss_interval == pytest.approx((-math.log(0.6),) * 2)


def test_one_label_of_many_is_scored_on_rows_that_have_it():
    found = score([[0.9], [0.9], [0.1]], [[True], [False], [False]], ("a",), multi_label=True)
    assert [points(row) for row in found.per_class] == [(0.5, 1.0, pytest.approx(2 / 3), 1)]


def test_multi_label_rows_without_any_label_have_no_f1_but_are_right():
    found = score(np.zeros((3, 4)), np.zeros((3, 4), bool), multi_label=True)
    assert (found.accuracy, found.macro_f1, found.micro_f1) == (1.0, 0.0, 0.0)


def test_more_than_200_labels_have_no_confusion_matrix():
    labels = tuple(map(str, range(201)))
    assert score(certain([0, 200], 201), [0, 200], labels).confusion is None
    assert len(score(certain([0, 199], 200), [0, 199], labels[:200]).confusion) == 200


def test_intervals_of_accuracy_and_loss_are_those_of_the_other_metrics():
    logits, targets = drawn()
    shares, losses = probabilities(logits, temperature=1.0, multi_label=False), np.arange(400.0)
    found = score(shares, targets, losses=losses)
    right = shares.argmax(axis=1) == targets
    assert found.accuracy_interval == pytest.approx(Bootstrap(200).mean_interval(right))
    assert found.loss == pytest.approx(199.5)
    assert found.loss_interval == pytest.approx(Bootstrap(200).mean_interval(losses))


def test_the_interval_of_the_macro_f1_is_that_of_scikit_learn_on_each_resample():
    logits, targets = drawn(60)
    shares = probabilities(logits, temperature=1.0, multi_label=False)
    generator, chosen = np.random.default_rng(3), shares.argmax(axis=1)
    rows = generator.integers(0, 60, size=(100, 60))
    expected = np.quantile([f1_score(targets[row], chosen[row], average="macro") for row in rows], [0.05, 0.95])
    found = score(shares, targets, bootstrap_samples=100, confidence=0.9, seed=3)
    assert found.macro_f1_interval == pytest.approx(tuple(expected))


def test_intervals_of_a_label_are_those_of_scikit_learn_on_each_resample():
    logits, targets = drawn(60)
    shares = probabilities(logits, temperature=1.0, multi_label=False)
    chosen, rows = shares.argmax(axis=1), np.random.default_rng(3).integers(0, 60, size=(100, 60))
    resampled = np.array(
        [precision_recall_fscore_support(targets[row], chosen[row], labels=range(4), zero_division=0.0) for row in rows]
    )
    expected = np.quantile(resampled[:, :3], [0.05, 0.95], axis=0)
    found = score(shares, targets, bootstrap_samples=100, confidence=0.9, seed=3, positive_label="c")
    for number, row in enumerate(found.per_class):
        assert np.transpose([row.precision_interval, row.recall_interval, row.f1_interval]) == pytest.approx(
            expected[:, :, number]
        )
    assert found.positive_f1_interval == found.per_class[2].f1_interval


def test_an_in_scope_row_that_is_answered_out_of_scope_is_wrong_and_adds_no_label_to_the_macro_f1():
    found = score(certain([0, 0, 1, 3]), [0, 0, 1, 1], out_of_scope_label="d")
    assert found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert found.macro_f1_interval[1] == 1.0


def test_rows_out_of_scope_count_in_the_confusion_matrix_alone():
    chosen, targets = [0, 1, 0, 3], [0, 1, 3, 3]
    found, inside = score(certain(chosen), targets, out_of_scope_label="d"), score(certain([0, 1]), [0, 1])
    assert found.confusion == tuple(map(tuple, confusion_matrix(targets, chosen, labels=range(4)).tolist()))
    assert dataclasses.replace(found, confusion=None) == dataclasses.replace(inside, confusion=None)


def test_rows_that_are_all_out_of_scope_are_an_error():
    with pytest.raises(ValueError, match="no in-scope row"):
        score(certain([0]), [3], out_of_scope_label="d")


def test_ten_thousand_labels_are_scored_without_an_array_of_them_for_each_row():
    count, rows, generator = 10_000, 1_000, np.random.default_rng(0)
    targets = generator.integers(0, count, rows)
    chosen = np.where(generator.random(rows) < 0.7, targets, generator.integers(0, count, rows))
    shares = np.zeros((rows, count))
    shares[np.arange(rows), chosen] = 1.0
    tracemalloc.start()
    found = score(shares, targets, tuple(map(str, range(count))), bootstrap_samples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.accuracy == np.mean(chosen == targets)
    assert found.macro_f1 == pytest.approx(f1_score(targets, chosen, average="macro"))
    assert found.accuracy_interval == pytest.approx(Bootstrap().mean_interval(chosen == targets))
    assert found.macro_f1_interval[0] < found.macro_f1
    label = found.per_class[targets[0]]
    assert label.support == np.sum(targets == targets[0])
    assert label.recall == pytest.approx(np.mean(chosen[targets == targets[0]] == targets[0]))
    assert peak < 240e6  # counts of all labels for each row, float64, are 240 MB


def test_the_interval_of_the_calibration_error_corrects_for_what_resampling_adds():
    logits, targets = drawn(300)
    shares = probabilities(logits, temperature=1.0, multi_label=False)
    found, right = score(shares, targets), shares.argmax(axis=1) == targets
    rows = np.random.default_rng(0).integers(0, 300, size=(200, 300))
    resampled = [expected_calibration_error(shares.max(axis=1)[row], right[row]) for row in rows]
    low, high = 2 * found.ece - np.quantile(resampled, [0.975, 0.025])
    assert found.ece_interval == pytest.approx((max(0.0, low), max(found.ece, high)))
    assert np.mean(resampled) > found.ece


@pytest.mark.parametrize("multi_label", [False, True])
def test_every_score_lies_within_its_interval(multi_label):
    logits, targets = (drawn_multi if multi_label else drawn)(40)
    shares = probabilities(logits, temperature=1.0, multi_label=multi_label)
    found = dataclasses.asdict(score(shares, targets, multi_label=multi_label, positive_label="a"))
    pairs = [(found[name.removesuffix("_interval")], found[name]) for name in found if name.endswith("_interval")]
    assert all(low <= point <= high for point, (low, high) in (pair for pair in pairs if pair[1]))
    assert sum(interval is None for _, interval in pairs) == (0 if multi_label else 1)


def test_memory_is_bounded_without_changing_the_intervals(monkeypatch):
    logits, targets = drawn(50)
    shares = probabilities(logits, temperature=1.0, multi_label=False)
    whole = score(shares, targets)
    monkeypatch.setattr(resample, "VALUES_AT_ONCE", 500)
    found = score(shares, targets)
    assert found.macro_f1_interval == pytest.approx(whole.macro_f1_interval)
    assert found.ece_interval == pytest.approx(whole.ece_interval)
    assert [row.recall_interval for row in found.per_class] == [
        pytest.approx(row.recall_interval) for row in whole.per_class
    ]


def test_a_score_survives_json():
    found = score(certain([0, 1]), [0, 1], positive_label="a")
    assert json.loads(json.dumps(dataclasses.asdict(found)))["per_class"][1]["label"] == "b"


@pytest.mark.parametrize(
    ("shares", "targets", "multi_label", "match"),
    [
        (np.zeros((0, 4)), np.zeros(0, np.int64), False, "at least one row"),
        (np.zeros((2, 3)), np.zeros(2, np.int64), False, "do not fit"),
        (np.zeros((2, 4)), np.zeros(2, np.int64), True, "do not fit"),
        (np.zeros((2, 4)), np.array([0, -1]), False, "reach from -1 to 0: need 0 to 3"),
        (np.zeros((2, 4)), np.array([0, 4]), False, "reach from 0 to 4: need 0 to 3"),
    ],
)
def test_rows_that_do_not_fit_are_an_error(shares, targets, multi_label, match):
    with pytest.raises(ValueError, match=match):
        score(shares, targets, multi_label=multi_label)


def test_a_positive_label_that_is_none_of_the_labels_is_an_error():
    with pytest.raises(ValueError, match="'spam' is none of the labels"):
        score(certain([0]), [0], positive_label="spam")
