"""evaluate/labeller.py: a classifier's scores, its calibration and what it answers "unknown"."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from edgetune.cli.scores import describe, result_lines
from edgetune.evaluate import labeller
from edgetune.evaluate.label_rows import LabelRow, LabelSet
from edgetune.evaluate.labeller import calibrate_for, latency_texts, score
from edgetune.recipe import parse_recipe

LABELS = ("a", "b", "other")


class Told:
    """Gives the logits that the text itself spells, and counts the texts."""

    def __init__(self):
        self.texts = 0

    def logits(self, texts):
        self.texts += len(texts)
        return np.array([json.loads(text) for text in texts], np.float32)


def row(*logits, labels=(0,)):
    return LabelRow(json.dumps(logits), labels, "rows:1")


def label_set(rows, *, calibration=None, **changes):
    values = {
        "rows": tuple(rows),
        "calibration": tuple(rows) if calibration is None else tuple(calibration),
        "scores_calibration_rows": calibration is None,
        "labels": LABELS,
        "multi_label": False,
        "metric": "accuracy",
        "positive_label": None,
        "out_of_scope_label": None,
        "false_accept_rate": None,
        "bootstrap_samples": 50,
        "confidence": 0.95,
        "seed": 0,
        "source": "rows",
        "source_rows": len(rows),
        "dropped_empty": 0,
    }
    return LabelSet(**{**values, **changes})


def test_scores_on_the_calibration_rows_say_so():
    rows = [row(2, 0, 0), row(0, 1, 0), row(3, 0, 0, labels=(1,))] * 5
    assert score(Told(), label_set(rows))[0].is_calibrated_on_scored_rows
    apart = score(Told(), label_set(rows, calibration=rows[:4]))[0]
    assert not apart.is_calibrated_on_scored_rows


def test_a_target_with_a_calibration_of_its_own_is_believed_only_where_these_rows_give_another():
    rows = [row(2, 0, 0), row(0, 1, 0), row(3, 0, 0, labels=(1,))] * 5
    fitted = score(Told(), label_set(rows))[0].temperature
    same, _ = score(Told(), label_set(rows), calibrated=(fitted, None))
    other, _ = score(Told(), label_set(rows), calibrated=(2 * fitted, None))
    assert (same.is_calibrated_on_scored_rows, other.is_calibrated_on_scored_rows) == (True, False)
    assert other.temperature == 2 * fitted


def test_rows_that_are_both_scored_and_calibrated_on_are_labelled_once():
    target, rows = Told(), [row(2, 0, 0), row(0, 1, 0)] * 5
    score(target, label_set(rows))
    assert target.texts == 10


def test_a_certain_answer_that_no_label_applies_is_not_unknown():
    """The least sure row is the one with a label near one half, however likely its other label."""
    rows = [row(-9, -9, -9, labels=()), row(9, 0.1, -9, labels=(0,)), row(9, 9, -9, labels=(0, 1))]
    result, answers = score(Told(), label_set(rows, multi_label=True), calibrated=(1.0, 0.9))
    assert [answer.is_unknown for answer in answers] == [False, True, False]
    assert [answer.correct for answer in answers] == [True, False, True]
    assert answers[0].probability == pytest.approx(1 / (1 + math.exp(-9)))
    assert result.rejection["in_scope_accuracy"] == pytest.approx(2 / 3)
    assert result.rejection["auroc"] == 1.0
    assert result.rejection["out_of_scope_recall"] is None


def in_and_out_of_scope():
    """Ten rows of a, ten of b, one of which is taken for "other", and three that are out of scope."""
    rows = [row(9, 0, 0)] * 10 + [row(0, 9, 0, labels=(1,))] * 9 + [row(0, 0, 9, labels=(1,))]
    return [*rows, row(0, 0, 9, labels=(2,)), row(0, 0, 9, labels=(2,)), row(9, 0, 0, labels=(2,))]


def test_the_out_of_scope_label_counts_in_no_macro_f1():
    result, _ = score(Told(), label_set(in_and_out_of_scope(), out_of_scope_label="other"), calibrated=(1.0, None))
    assert result.classes["rows"] == 20
    assert result.classes["accuracy"] == 0.95
    assert result.classes["macro_f1"] == pytest.approx((1 + 18 / 19) / 2)


def test_the_confusion_matrix_holds_the_rows_out_of_scope():
    result, _ = score(Told(), label_set(in_and_out_of_scope(), out_of_scope_label="other"), calibrated=(1.0, None))
    assert result.classes["confusion"] == ((10, 0, 0), (0, 9, 1), (1, 0, 2))


def unheard_of():
    """Rows of a head without a label for what is out of scope: sure and unsure ones, and two of them out of scope."""
    sure = [row(3, 0), row(0, 3, labels=(1,)), row(2.5, 0), row(0, 1.5)] * 5
    return [*sure, row(0.2, 0, labels=(2,)), row(0, 0.4, labels=(2,))]


def test_rows_out_of_scope_teach_the_threshold_of_a_head_that_has_no_label_for_them():
    rows = label_set(unheard_of(), out_of_scope_label="other")
    result, answers = score(Told(), rows)
    assert 1 / (1 + math.exp(-0.4 / result.temperature)) < result.rejection["threshold"]
    assert [answer.is_unknown for answer in answers] == [False] * 20 + [True] * 2
    assert [answer.correct for answer in answers[-2:]] == [False, False]
    assert result.rejection["out_of_scope_recall"] == 1.0
    assert result.rejection["in_scope_accuracy"] == 0.75
    assert result.rejection["auroc"] == 1.0
    assert result.classes["rows"] == 20
    assert result.classes["confusion"] == ((10, 5, 0), (0, 5, 0), (1, 1, 0))
    assert math.isfinite(result.loss)


def test_a_false_accept_rate_that_is_stated_is_kept_in_place_of_what_would_be_learnt():
    rows = label_set(unheard_of(), out_of_scope_label="other", false_accept_rate=0.5)
    result, answers = score(Told(), rows)
    assert result.rejection["false_accept_rate"] == 0.5
    assert [answer.is_unknown for answer in answers[-2:]] == [True, False]


def test_the_temperature_is_that_of_the_rows_whose_labels_the_head_has():
    rows = label_set(unheard_of(), out_of_scope_label="other")
    inside = label_set(unheard_of()[:20], labels=("a", "b"))
    assert score(Told(), rows)[0].temperature == score(Told(), inside)[0].temperature


def test_eval_rows_in_scope_alone_teach_no_threshold():
    result, _ = score(Told(), label_set(unheard_of()[:20], out_of_scope_label="other"))
    assert result.rejection["threshold"] == 0.0


def test_rejection_has_intervals_at_the_confidence_of_all_scores():
    rows = label_set(in_and_out_of_scope(), out_of_scope_label="other")
    wide, _ = score(Told(), rows, calibrated=(1.0, None))
    narrow, _ = score(Told(), dataclasses.replace(rows, confidence=0.2), calibrated=(1.0, None))
    low, high = wide.rejection["in_scope_accuracy_interval"]
    inner_low, inner_high = narrow.rejection["in_scope_accuracy_interval"]
    assert low < inner_low <= 0.95 <= inner_high <= high


def test_latency_is_measured_on_texts_of_all_labels():
    rows = [row(n, 0, 0, labels=(n // 100,)) for n in range(300)]
    found = latency_texts(label_set(rows))
    assert len(found) == labeller.LATENCY_TEXTS
    assert found == latency_texts(label_set(rows))
    assert {json.loads(text)[0] // 100 for text in found} == {0, 1, 2}
    assert len(latency_texts(label_set(rows[:3]))) == 3


def test_a_threshold_is_chosen_on_named_eval_rows_though_no_test_rows_are_there(tmp_path):
    rows = [{"text": json.dumps([3 + n, 0, 0]), "label": "ab"[n % 4 == 0]} for n in range(40)]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows))
    (tmp_path / "test.jsonl").write_text('{"text": "[1, 2, 3]", "label": "unheard of"}\n')
    recipe = parse_recipe(
        f'[model]\nbase = "x"\ntask = "classification"\n[data]\ntrain = "{tmp_path}/train.jsonl"\n'
        f'eval = "{tmp_path}/eval.jsonl"\ntest = "{tmp_path}/test.jsonl"\n[classify]\nfalse_accept_rate = 0.5\n',
        source="recipe.toml",
    )
    target = Told()
    temperature, threshold = calibrate_for(recipe, target, LABELS)
    assert temperature != 1.0
    assert 0 < threshold < 1
    assert target.texts == 40


def test_a_user_sees_each_score_with_its_interval_and_what_it_was_calibrated_on():
    result, _ = score(Told(), label_set(in_and_out_of_scope(), out_of_scope_label="other"))
    values = json.loads(json.dumps(dataclasses.asdict(result)))
    text = "\n".join(result_lines("bundle", values))
    for name in ("accuracy 95.0% (", "macro F1 97.4% (", "calibration error", "in-scope accuracy 95.0% ("):
        assert name in text
    for name in ("out-of-scope recall 66.7% (", "AUROC 0.", "false-accept rate 33.3% ("):
        assert name in text
    summary = {"rows": 23, "confidence": 0.95, "metric": "accuracy"}
    assert "the very rows scored" in describe(summary, values)
    assert "the very rows scored" not in describe(summary, values | {"is_calibrated_on_scored_rows": False})
