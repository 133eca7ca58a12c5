"""Learning rates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgetune.train.schedule import auto_learning_rate, learning_rate_share


def config(model_type, hidden_size):
    text = SimpleNamespace(hidden_size=hidden_size)
    return SimpleNamespace(model_type=model_type, get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("kind", "hidden", "expected"),
    [("llama", 3072, 3.6e-4), ("qwen2", 896, 5.3e-4), ("llama", 256, 2.5e-3), ("gemma3_text", 640, 1.2e-3)],
)
def test_auto_follows_the_published_fit(kind, hidden, expected):
    assert auto_learning_rate(config(kind, hidden)) == pytest.approx(expected, rel=0.03)


def shares(schedule, *, steps=100, warmup_ratio=0.1, least=0.1):
    return [
        learning_rate_share(step, steps, schedule=schedule, warmup_ratio=warmup_ratio, least=least)
        for step in range(1, steps + 1)
    ]


def test_warm_up_rises_in_a_straight_line_to_the_whole_rate():
    assert shares("constant")[:10] == pytest.approx([n / 10 for n in range(1, 11)])


def test_constant_stays():
    assert set(shares("constant")[10:]) == {1.0}


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.55), ("cosine", 0.55)])
def test_linear_and_cosine_fall_to_the_least_share_at_the_last_step(schedule, half):
    values = shares(schedule)
    assert values[-1] == pytest.approx(0.1)
    assert values[54] == pytest.approx(half)
    assert values[9:] == sorted(values[9:], reverse=True)


def test_without_warm_up_the_first_step_is_not_lost():
    assert shares("linear", steps=2, warmup_ratio=0.0, least=0.0) == [0.5, 0.0]
    assert shares("cosine", steps=1, warmup_ratio=1.0) == [1.0]
