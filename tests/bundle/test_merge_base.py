"""bundle/merge_base.py: which base to merge on is measured after rounding."""

from __future__ import annotations

import json

import pytest

from edgetune.bundle import generation
from edgetune.bundle.merge_base import choose_merge_base
from edgetune.errors import EdgeTuneError
from edgetune.pipeline import merge_base_of
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    """A recipe and its run folder with an adapter in it."""
    recipe = parse_recipe(tiny_recipe(train={"max_steps": 8}, export={"merge_base": "auto"}), source="test")
    run_dir = RunDir(tmp_path_factory.mktemp("merge") / "run")
    train(recipe, run_dir)
    return recipe, run_dir


def test_both_merges_are_measured_and_the_lower_loss_wins(trained, tiny_base):
    recipe, run_dir = trained
    before = sorted(run_dir.path.iterdir())
    choice = choose_merge_base(recipe, run_dir, tiny_base)
    assert set(choice.losses) == {"trained", "original"}
    assert choice.losses["trained"] != choice.losses["original"]
    assert choice.merge_base == min(choice.losses, key=choice.losses.get)
    assert sorted(run_dir.path.iterdir()) == before


def test_what_is_measured_is_the_rounded_model(trained, tiny_base):
    recipe, run_dir = trained
    exact = parse_recipe(recipe.to_toml(), source="test", overrides=["export.precision=fp32"])
    rounded, plain = (choose_merge_base(asked, run_dir, tiny_base).losses for asked in (recipe, exact))
    eval_loss = json.loads((run_dir.results / "train.json").read_text())["eval_loss"]
    assert plain["trained"] == pytest.approx(eval_loss, rel=2e-3)
    assert abs(rounded["trained"] - eval_loss) > abs(plain["trained"] - eval_loss)


@pytest.mark.parametrize(
    ("losses", "expected"), [((0.5, 0.4), "original"), ((0.4, 0.5), "trained"), ((0.4, 0.4), "trained")]
)
def test_a_tie_goes_to_the_base_that_was_trained(trained, tiny_base, monkeypatch, losses, expected):
    found = iter(losses)
    monkeypatch.setattr(generation, "loss_on_grid", lambda *_, **__: next(found))
    assert choose_merge_base(*trained, tiny_base).merge_base == expected


def test_the_run_keeps_what_was_measured(trained, tiny_base, monkeypatch):
    found, told = iter((0.5, 0.4)), []
    monkeypatch.setattr(generation, "loss_on_grid", lambda *_, **__: next(found))
    recipe, run_dir = trained
    assert merge_base_of(recipe, run_dir, tiny_base, progress=told.append) == "original"
    kept = json.loads((run_dir.results / "merge.json").read_text())
    assert (kept["merge_base"], kept["losses"]) == ("original", {"trained": 0.5, "original": 0.4})
    assert "merging on the original" in told[-1]["message"]


def test_a_fault_leaves_no_second_model_behind(trained, tiny_base, monkeypatch):
    def fail(*_, **__):
        raise EdgeTuneError("no")

    recipe, run_dir = trained
    before = sorted(run_dir.path.iterdir())
    monkeypatch.setattr(generation, "loss_on_grid", fail)
    with pytest.raises(EdgeTuneError):
        choose_merge_base(recipe, run_dir, tiny_base)
    assert sorted(run_dir.path.iterdir()) == before
