"""The learning-rate finder: what a curve says, and a real range test."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune.cli import main
from edgetune.errors import DivergedError, RecipeError
from edgetune.run_dir import RunDir
from edgetune.train.find_rate import LEAST, MOST, find_rate, suggest
from edgetune.train.loop import train

RATES = [1e-6 * 10 ** (step / 10) for step in range(60)]


def curve(falls_at, rises_at):
    """Losses that fall by 2 around one rate and blow up after another."""
    return [3 - 2 / (1 + (falls_at / rate) ** 2) + (rate / rises_at) ** 2 for rate in RATES]


def test_the_suggestion_lies_between_the_steepest_fall_and_a_tenth_of_the_lowest_loss():
    found = suggest(RATES, curve(1e-4, 0.05), diverged=None, recipe_rate=1e-4)
    assert found.steepest == pytest.approx(2e-4, rel=0.9)
    assert found.steepest < found.lowest < 0.1
    assert found.safe == found.lowest / 10
    assert found.suggested == pytest.approx(math.sqrt(found.steepest * found.safe), rel=0.05)


def test_a_task_that_needs_a_hundred_times_the_rate_is_suggested_about_so_much_more():
    slow, fast = (suggest(RATES, curve(at, 500 * at), diverged=None, recipe_rate=1.0) for at in (1e-5, 1e-3))
    assert fast.suggested / slow.suggested == pytest.approx(100, rel=0.6)


@pytest.mark.parametrize("losses", [[3.0] * 60, [3.0 + step for step in range(60)], [3.0], []])
def test_a_loss_that_never_falls_is_an_error(losses):
    with pytest.raises(RecipeError, match="the loss falls at no learning rate"):
        suggest(RATES[: len(losses)], losses, diverged=None, recipe_rate=1.0)


@pytest.mark.slow
def test_a_training_at_the_suggested_rate_beats_rates_far_from_it(make_recipe, tmp_path):
    recipe = make_recipe("train.max_steps=30", "train.schedule=constant", "lora.dropout=0.0")
    found = find_rate(recipe, RunDir(tmp_path / "lr"), steps=60)
    assert found.rates[0] == LEAST
    assert found.diverged is None or found.diverged < MOST
    assert len(found.rates) == len(found.losses) <= 60
    losses = {}
    for times in (1, 1 / 50, 50):
        rate = found.suggested * times
        keys = ("train.max_steps=30", "train.schedule=constant", "lora.dropout=0.0", "train.eval_steps=30")
        one = make_recipe(*keys, f"train.learning_rate={rate}", "train.divergence_restarts=0")
        try:
            losses[times] = train(one, RunDir(tmp_path / f"run-{times}")).eval_loss
        except DivergedError:
            losses[times] = math.inf
    assert losses[1] < losses[1 / 50] - 0.2
    assert losses[1] < losses[50]


def test_it_is_the_same_test_every_time_and_leaves_no_adapter(make_recipe, tmp_path):
    first, again = (find_rate(make_recipe(), RunDir(tmp_path / name), steps=12) for name in "ab")
    assert first.losses == again.losses
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["cache"]


@pytest.fixture
def tiny(recipe_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(recipe_text)
    return CliRunner()


@pytest.mark.slow
def test_the_verb_shows_a_rate_a_picture_and_how_to_use_it(tiny):
    done = tiny.invoke(main, ["train", "tiny.toml", "--find-lr"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("suggested  ")
    assert "edgetune train tiny.toml --set train.learning_rate=" in done.stderr
    assert Path("runs/tiny-lr/learning_rate.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("runs/tiny").exists()
    again = tiny.invoke(main, ["train", "tiny.toml", "--find-lr", "--json"])
    found = json.loads(again.stdout)
    assert 1e-6 < found["suggested"] < 1
    assert (
        tiny.invoke(main, ["train", "tiny.toml", "--set", f"train.learning_rate={found['suggested']}"]).exit_code == 0
    )


def test_a_folder_of_the_users_own_is_left_alone(tiny):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    done = tiny.invoke(main, ["train", "tiny.toml", "--find-lr", "--out", "mine"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "mine: is no range test" in done.stderr
