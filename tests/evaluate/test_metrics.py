"""Scores and intervals: edgetune/evaluate/metrics.py."""

from __future__ import annotations

import json

import pytest

from edgetune.evaluate.metrics import (
    count_fields,
    fields,
    is_exact,
    is_same_json,
    parse_json,
    score_fields,
)
from edgetune.evaluate.resample import Bootstrap


def test_exact_match_ignores_white_space_at_the_ends_only():
    assert is_exact(" on \n", "on")
    assert not is_exact("o n", "on")
    assert not is_exact("On", "on")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', '{"b": {"d": 3, "c": 2}, "a": 1}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ("100", "1e2"),
        (' {"a":[1, 2]}\n', '{"a": [1,2]}'),
        ('"\\u00e9"', '"é"'),
        ("{}", "{ }"),
    ],
)
def test_the_same_json_value_written_otherwise_is_the_same(answer, reference):
    assert is_same_json(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ('{"a": 1', '{"a": 1}'),
        ('{"a": 1} and more', '{"a": 1}'),
        ('{"a": true}', '{"a": 1}'),
        ('{"a": "1"}', '{"a": 1}'),
        ('{"a": null}', "{}"),
        ('{"a": {}}', '{"a": []}'),
        ('{"a": [2, 1]}', '{"a": [1, 2]}'),
        ('{"a.b": 1}', '{"a": {"b": 1}}'),
        ('{"a": 1, "a": 1}', '{"a": 1}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ("NaN", "NaN"),
        ("", '{"a": 1}'),
    ],
)
def test_another_value_or_none_is_not_the_same(answer, reference):
    assert not is_same_json(answer, reference)


def test_json_nested_deeper_than_the_stack_is_invalid_and_no_crash():
    assert parse_json("[" * 100_000) == (False, None)


def test_fields_are_paths_with_their_leaves():
    value = {"intent": "play", "slots": {"n": 2, "who": ["a", "b"]}, "none": {}}
    assert fields(value) == [
        ('."intent"', "text", "play"),
        ('."slots"."n"', "number", 2),
        ('."slots"."who"[0]', "text", "a"),
        ('."slots"."who"[1]', "text", "b"),
        ('."none"', "object", ""),
    ]


def test_field_scores_count_over_all_rows():
    answers = ['{"a": 1, "b": 2, "c": 9}', "not json", '{"a": 1}']
    references = ['{"a": 1, "b": 3}', '{"a": 1}', '{"a": 1, "b": 2}']
    scored = score_fields([count_fields(*pair) for pair in zip(answers, references, strict=True)])
    assert (scored.matched, scored.answered, scored.wanted) == (2, 4, 5)
    assert scored.precision == pytest.approx(2 / 4)
    assert scored.recall == pytest.approx(2 / 5)
    assert scored.f1 == pytest.approx(2 * 2 / 9)
    assert scored.valid == pytest.approx(2 / 3)


def test_a_reference_that_is_not_json_is_an_error():
    with pytest.raises(ValueError, match="reference is not JSON"):
        count_fields("{}", "{")


def test_field_scores_survive_json():
    scored = score_fields([count_fields('{"a": 1}', '{"a": 1}')])
    assert json.loads(json.dumps(vars(scored)))["f1"] == 1.0


def test_the_f1_of_fields_has_an_interval_by_rows():
    right, wrong = count_fields('{"a": 1}', '{"a": 1}'), count_fields("no", '{"a": 1, "b": 1, "c": 1}')
    low, high = score_fields([right, wrong], bootstrap=Bootstrap(200)).f1_interval
    assert (low, high) == (0.0, 1.0)
