"""train/auto.py: "auto" in [train] becomes what fits when the training starts, and stays that when it goes on."""

from __future__ import annotations

import pytest

from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train import auto, fit
from edgetune.train.loop import train

AUTO = ("train.batch_size=auto", "train.gradient_checkpointing=auto", "train.eval_steps=3", "train.checkpoint_steps=1")


@pytest.fixture
def room(monkeypatch):
    """`room(bytes)`: what a training may take; it needs 100 for each sequence, or 10 where layers are checkpointed."""

    class Peak:
        def __init__(self, recipe):
            self.peak_bytes = recipe.batch_size * (10 if recipe.gradient_checkpointing else 100)

    monkeypatch.setattr(auto, "estimate", lambda recipe, **_: Peak(recipe))
    return lambda size: monkeypatch.setattr(auto, "room_bytes", lambda *_: size)


def settled_values(run_dir):
    table = load_recipe(run_dir.recipe).train
    return table.batch_size, table.gradient_accumulation_steps, table.gradient_checkpointing


@pytest.mark.parametrize(
    ("size", "expected"), [(1000, (4, 2, False)), (250, (2, 4, False)), (25, (2, 4, True)), (5, (1, 8, True))]
)
def test_auto_becomes_the_fastest_that_fits_with_the_same_effective_batch(make_recipe, tmp_path, room, size, expected):
    room(size)
    result = train(make_recipe(*AUTO), RunDir(tmp_path / "r"))
    assert settled_values(RunDir(tmp_path / "r")) == expected
    assert result.batch_size == expected[0]


def test_a_run_that_goes_on_keeps_what_it_began_with(make_recipe, tmp_path, room, monkeypatch):
    run_dir = RunDir(tmp_path / "r")
    room(250)
    with monkeypatch.context() as patch:
        original, calls = fit.make_step, []

        def die_in_the_third_step(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(*args, **options)

        patch.setattr(fit, "make_step", die_in_the_third_step)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe(*AUTO), run_dir)
    room(1000)
    assert train(make_recipe(*AUTO), run_dir).batch_size == 2
    assert settled_values(run_dir) == (2, 4, False)
    again = RunDir(tmp_path / "again")
    train(make_recipe(*AUTO), again)
    assert settled_values(again) == (4, 2, False)
