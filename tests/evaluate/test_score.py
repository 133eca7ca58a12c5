"""Scoring through the Answerer protocol: edgetune/evaluate/score.py."""

from __future__ import annotations

import dataclasses
import math

import pytest

from edgetune.evaluate.rows import EvalRow, EvalSet, Limits, read_eval_set, write_rows
from edgetune.evaluate.score import measure_speed, score


class Echo:
    """Answers with given texts; each row's loss is 2 nats over its trained tokens; decodes 10 tokens a second."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, rows, *, on_done=None, **_):
        if on_done:
            on_done(len(rows))
        return list(self.texts)

    def losses(self, rows):
        return [(2.0, sum(label != -100 for label in row.labels)) for row in rows]

    def decode_speed(self, *_, **__):
        return 5, 0.5


def _row(reference, trained=2):
    return EvalRow(
        messages=({"role": "user", "content": "hi"},),
        reference=reference,
        prompt_ids=(1, 2),
        input_ids=(1, 2, 3, 4),
        labels=(-100,) * (4 - trained) + (5,) * trained,
        place="rows.jsonl:1",
    )


def _eval_set(rows, metric="exact_match"):
    return EvalSet(
        rows=tuple(rows),
        metric=metric,
        limits=Limits(max_new_tokens=8, context_length=64, eos_ids=(0,)),
        bootstrap_samples=100,
        confidence=0.9,
        source="rows.jsonl",
        source_rows=len(rows),
        dropped_too_long=0,
    )


def test_the_score_is_the_share_of_right_rows_with_its_interval():
    result, answers = score(Echo(["on", "off"]), _eval_set([_row("on"), _row("on")]))
    assert result.score == 0.5
    assert result.interval == (0.0, 1.0)
    assert [answer.correct for answer in answers] == [True, False]
    assert answers[0].prompt == "hi"
    assert result.fields is None


def test_the_loss_weighs_rows_by_their_trained_tokens():
    result, _ = score(Echo(["a", "b"]), _eval_set([_row("a", trained=3), _row("b", trained=1)]))
    assert result.loss == pytest.approx(4.0 / 4)
    assert result.perplexity == pytest.approx(math.e)
    assert result.trained_tokens == 4


def test_json_rows_get_field_scores():
    result, _ = score(Echo(['{"a": 1}', "no"]), _eval_set([_row('{"a": 1.0}'), _row('{"a": 2}')], "json"))
    assert result.score == 0.5
    assert result.fields.recall == 0.5
    assert result.fields.valid == 0.5


def test_the_loss_metric_generates_nothing():
    target = Echo([])
    target.generate = None
    result, answers = score(target, _eval_set([_row(None)], "loss"))
    assert result.score is None
    assert result.interval is None
    assert answers[0].answer is None
    assert answers[0].correct is None


def test_a_row_without_trained_tokens_has_no_loss_of_its_own():
    _, answers = score(Echo(["a", "b"]), _eval_set([_row("a", trained=0), _row("b")]))
    assert answers[0].loss is None


def test_progress_hears_how_many_rows_are_done():
    events = []
    score(Echo(["on"]), _eval_set([_row("on")]), progress=events.append)
    assert events[-1]["step"] == events[-1]["steps"] == 1


def test_speed_is_the_median_over_prompts():
    speed = measure_speed(Echo([]), _eval_set([_row("a")] * 3))
    assert speed.tokens_per_s == pytest.approx(10.0)
    assert speed.prompts == 3


def test_rows_that_end_at_once_have_no_speed():
    target = Echo([])
    target.decode_speed = lambda *_, **__: (0, 0.0)
    assert measure_speed(target, _eval_set([_row("a")])) is None


def test_an_eval_set_is_the_same_after_a_file(tmp_path):
    eval_set = _eval_set([_row("ü"), _row(None)])
    write_rows(tmp_path / "rows.json", eval_set)
    again = read_eval_set(tmp_path / "rows.json")
    assert again == eval_set
    assert again.fingerprint == eval_set.fingerprint


def test_a_metric_with_more_than_right_and_wrong_is_the_mean_of_the_rows():
    result, answers = score(Echo(["on it", "on"]), _eval_set([_row("on"), _row("on")], metric="token_f1"))
    assert [answer.score for answer in answers] == pytest.approx([2 / 3, 1.0])
    assert result.score == pytest.approx(5 / 6)
    assert [answer.correct for answer in answers] == [None, None]
    assert result.exact == 0.5


def test_the_users_own_check_decides_and_what_became_of_it_is_kept(tmp_path):
    (tmp_path / "check.py").write_text(
        "def check(answer, row):\n    return 1 / (row['prompt'] == 'hi') and answer > 'o'\n"
    )
    eval_set = dataclasses.replace(
        _eval_set([_row("on"), _row("on")], metric="check"), check=str(tmp_path / "check.py"), check_seconds=60.0
    )
    result, answers = score(Echo(["on", "an"]), eval_set)
    assert [answer.correct for answer in answers] == [True, False]
    assert result.check == {"timed_out": 0, "raised": 0, "first_error": None}
    assert result.score == 0.5
