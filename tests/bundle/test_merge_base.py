"""bundle/merge_base.py: which base to merge on is measured after rounding."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgetune.bundle import generation
from edgetune.bundle.merge_base import LEAST_ROWS, choice_of, choose_merge_base
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


@pytest.fixture(scope="module")
def learned(tiny_recipe, tiny_rows):
    """A recipe that learns its rows well and is measured on them, all of them, on float grids."""
    text = tiny_recipe(
        data={"eval": str(tiny_rows)}, train={"max_steps": 40}, export={"merge_base": "auto", "precision": "fp32"}
    )
    return parse_recipe(text, source="test")


def test_both_merges_are_measured_the_same_each_time(trained, tiny_base):
    recipe, run_dir = trained
    before = sorted(run_dir.path.iterdir())
    choice = choose_merge_base(recipe, run_dir, tiny_base)
    assert set(choice.losses) == {"trained", "original"}
    assert choice.losses["trained"] != choice.losses["original"]
    assert choice.difference[0] <= choice.losses["original"] - choice.losses["trained"] <= choice.difference[1]
    assert choice == choose_merge_base(recipe, run_dir, tiny_base)
    assert sorted(run_dir.path.iterdir()) == before


def test_what_is_measured_is_the_rounded_model(trained, tiny_base):
    recipe, run_dir = trained
    exact = parse_recipe(recipe.to_toml(), source="test", overrides=["export.precision=fp32"])
    rounded, plain = (choose_merge_base(asked, run_dir, tiny_base).losses for asked in (recipe, exact))
    eval_loss = json.loads((run_dir.results / "train.json").read_text())["eval_loss"]
    assert plain["trained"] == pytest.approx(eval_loss, rel=2e-3)
    assert abs(rounded["trained"] - eval_loss) > abs(plain["trained"] - eval_loss)


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ([1.0] * 20 + [2.0] * 20, "original"),
        ([3.0] * 20 + [3.5] * 20, "trained"),
        ([2.0, 3.0] * 20, "trained"),  # the same
        ([1.0, 3.9] * 20, "trained"),  # less by a twentieth on average, which is chance with rows that differ so
    ],
)
def test_the_original_is_taken_where_it_is_better_by_more_than_chance(original, expected):
    choice = choice_of([(nats, 2) for nats in [2.0, 3.0] * 20], [(nats, 2) for nats in original])
    assert choice.merge_base == expected
    assert choice.losses == {"trained": 1.25, "original": pytest.approx(sum(original) / 80)}
    low, high = choice.difference
    assert low <= choice.losses["original"] - 1.25 <= high


def test_a_handful_of_rows_decides_nothing():
    few, enough = ([(2.0, 1)] * rows for rows in (LEAST_ROWS - 1, LEAST_ROWS))
    assert choice_of(few, [(1.0, 1)] * len(few)).merge_base == "trained"
    assert choice_of(enough, [(1.0, 1)] * len(enough)).merge_base == "original"


def test_losses_weigh_rows_by_their_tokens():
    choice = choice_of([(1.0, 1), (6.0, 3)] * 10, [(3.0, 1), (3.0, 3)] * 10)
    assert choice.losses == {"trained": 1.75, "original": 1.5}


@pytest.mark.parametrize(("held", "better"), [("nf4", "trained"), ("none", "original")])
def test_the_base_that_the_adapter_was_fitted_to_is_found(learned, tiny_base, tmp_path, held, better):
    """Both are said to be trained in 4 bits: of one that is true, the other learned on the original weights."""
    run_dir = RunDir(tmp_path / "run")
    train(dataclasses.replace(learned, model=dataclasses.replace(learned.model, quantization=held)), run_dir)
    record = run_dir.adapter / "edgetune.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"quantization": "nf4"}))
    choice = choose_merge_base(learned, run_dir, tiny_base)
    assert choice.merge_base == better, choice


def test_what_is_measured_is_rounded_as_export_rounds_it(trained, tiny_base, monkeypatch):
    recipe, run_dir = trained
    asked, export = [], generation.as_exported

    def note(merged, recipe, **keys):
        asked.append((recipe.export.method, recipe.export.calibration_rows, recipe.export.repair_steps))
        return export(merged, recipe, **keys)

    monkeypatch.setattr(generation, "as_exported", note)
    choose_merge_base(recipe, run_dir, tiny_base)
    assert asked == [(recipe.export.method, recipe.export.calibration_rows, 0)] * 2


def test_the_run_keeps_what_was_measured(trained, tiny_base, monkeypatch):
    found, told = iter(([(5.0, 10)] * 20, [(4.0, 10)] * 20)), []
    monkeypatch.setattr(generation, "row_losses", lambda *_, **__: next(found))
    recipe, run_dir = trained
    assert merge_base_of(recipe, run_dir, tiny_base, progress=told.append) == "original"
    kept = json.loads((run_dir.results / "merge.json").read_text())
    assert (kept["merge_base"], kept["losses"]) == ("original", {"trained": 0.5, "original": 0.4})
    assert (kept["rows"], kept["difference"]) == (20, [pytest.approx(-0.1)] * 2)
    assert "merging on the original" in told[-1]["message"]


def test_a_fault_leaves_no_second_model_behind(trained, tiny_base, monkeypatch):
    def fail(*_, **__):
        raise EdgeTuneError("no")

    recipe, run_dir = trained
    before = sorted(run_dir.path.iterdir())
    monkeypatch.setattr(generation, "row_losses", fail)
    with pytest.raises(EdgeTuneError):
        choose_merge_base(recipe, run_dir, tiny_base)
    assert sorted(run_dir.path.iterdir()) == before
