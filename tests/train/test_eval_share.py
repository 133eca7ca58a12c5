"""Evaluations beside a training take a small share of its time, and the last one is of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.data import tokens as module
from edgetune.run_dir import RunDir
from edgetune.train import eval_share, generation
from edgetune.train.eval_share import EVAL_SHARE, FORWARD, LEAST_ROWS, sampled_places
from edgetune.train.events import read_events
from edgetune.train.loop import train
from edgetune.train.side_by_side import train_side_by_side


def test_few_eval_rows_are_all_looked_at():
    assert sampled_places(np.full(LEAST_ROWS, 50), trained_tokens=1, evaluations=9) is None
    assert sampled_places(np.full(400, 50), trained_tokens=12_000 * 50, evaluations=9) is None


@pytest.mark.parametrize("trained_rows", [1_000, 5_000])
def test_all_evaluations_together_keep_to_their_share(trained_rows):
    places = sampled_places(np.full(1_000, 50), trained_tokens=trained_rows * 50, evaluations=9)
    cost = FORWARD * (9 * len(places) + 1_000)
    assert cost <= EVAL_SHARE * trained_rows or len(places) == LEAST_ROWS
    assert places == sorted(set(places))
    assert places[0] == 0
    assert max(np.diff([*places, 1_000])) <= -(-1_000 // len(places))


def test_a_training_looks_at_a_part_and_in_the_end_at_all(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_share, "LEAST_ROWS", 3)
    keys = ("train.eval_steps=auto", "train.max_steps=6", "train.checkpoint_steps=100", "data.eval_fraction=0.4")
    run_dir, seen = RunDir(tmp_path / "r"), []
    result = train(make_recipe(*keys), run_dir, progress=seen.append)
    events = read_events(run_dir.events)
    looked = [event for event in events if "eval_loss" in event]
    whole = [event for event in events if "whole_eval_loss" in event]
    assert len(looked) == 6
    assert [event["step"] for event in whole] == [6]
    assert result.best_step == 6
    assert result.eval_loss == whole[0]["whole_eval_loss"] != looked[-1]["eval_loss"]
    assert any("3 of the" in event.get("message", "") for event in seen)


def test_rows_by_their_places_are_those_rows(tiny_tokens):
    some = tiny_tokens.at([3, 0, 4])
    assert [row.input_ids for row in some] == [tiny_tokens[place].input_ids for place in (3, 0, 4)]
    assert [row.labels for row in some] == [tiny_tokens[place].labels for place in (3, 0, 4)]
    assert some.fingerprint != tiny_tokens.fingerprint
    assert len(tiny_tokens.at([])) == 0


@pytest.fixture
def tiny_tokens() -> module.Tokens:
    lengths = [3, 1, 4, 1, 5]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return module.Tokens(np.arange(14, dtype=np.int32), -np.arange(14, dtype=np.int32), offsets, "x")


def test_what_is_compared_with_others_is_evaluated_on_all_rows(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_share, "LEAST_ROWS", 3)
    keys = ("train.eval_steps=auto", "train.max_steps=2", "data.eval_fraction=0.4")
    run_dir = RunDir(tmp_path / "r")
    result = train(make_recipe(*keys), run_dir, is_compared=True)
    looked = [event["eval_loss"] for event in read_events(run_dir.events) if "eval_loss" in event]
    assert result.eval_loss == min(looked)
    assert result.eval_rows > 3


def test_where_an_earlier_step_is_best_the_result_says_of_how_many_rows_it_is(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_share, "LEAST_ROWS", 3)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.7, 2.9])
    monkeypatch.setattr(generation, "evaluate_loss", lambda *_, **__: (next(losses), 1))
    keys = ("train.eval_steps=auto", "train.max_steps=6", "data.eval_fraction=0.4")
    result = train(make_recipe(*keys), RunDir(tmp_path / "r"))
    assert (result.eval_loss, result.best_step, result.eval_rows) == (1.0, 2, 3)


def test_adapters_side_by_side_are_evaluated_as_each_alone(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_share, "LEAST_ROWS", 3)
    keys = ("train.eval_steps=auto", "train.max_steps=4", "data.eval_fraction=0.4", "train.learning_rate=1e-3")
    recipe = make_recipe(*keys)
    alone = train(recipe, RunDir(tmp_path / "alone"))
    beside = train_side_by_side({"a": recipe}, tmp_path / "beside").results["a"]
    assert beside.eval_loss == pytest.approx(alone.eval_loss, rel=1e-4)
    assert (beside.best_step, beside.eval_rows) == (alone.best_step, alone.eval_rows)
