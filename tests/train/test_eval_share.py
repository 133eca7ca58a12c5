"""Evaluations beside a training take a small share of its time, and the last one is of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.data import tokens as module
from edgetune.run_dir import RunDir
from edgetune.train import eval_share
from edgetune.train.eval_share import EVAL_SHARE, FORWARD, LEAST_ROWS, sampled_places
from edgetune.train.events import read_events
from edgetune.train.loop import train


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
