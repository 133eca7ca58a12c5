"""Adapters side by side: each is what a training alone makes of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from edgetune.cli import main
from edgetune.cli import train as cli_train
from edgetune.errors import DivergedError, RecipeError
from edgetune.files import read_json
from edgetune.launch import Launch
from edgetune.run_dir import RunDir
from edgetune.train import side_by_side
from edgetune.train.loop import train
from edgetune.train.side_by_side import refuse_if_all_diverged, train_side_by_side

SETTINGS = {
    "a": ("train.learning_rate=0.01", "lora.r=4", "lora.dropout=0.1"),
    "b": ("train.learning_rate=0.003", "lora.r=8", "lora.dropout=0.3", "train.weight_decay=0.1"),
    "c": ("train.learning_rate=0.02", "lora.r=2", "lora.dropout=0.0", "train.schedule=linear", "lora.alpha=8.0"),
}


def close(alone, beside):
    """The same adapter but for the order of sums in float32, over six steps of AdamW."""
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (alone, beside))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("packing", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_each_adapter_is_that_of_a_training_alone_dropout_included(make_recipe, tmp_path, packing):
    more = (f"data.packing={packing}", "train.batch_size=3", "train.max_steps=4")
    variants = {name: make_recipe(*keys, *more) for name, keys in SETTINGS.items()}
    found = train_side_by_side(variants, tmp_path / "side", rows_in_flight=100)
    for name, recipe in variants.items():
        alone = train(recipe, RunDir(tmp_path / name))
        beside = found.results[name]
        assert (beside.steps, beside.best_step) == (alone.steps, alone.best_step)
        assert beside.eval_loss == pytest.approx(alone.eval_loss, rel=1e-4)
        assert beside.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
        close(tmp_path / name / "adapter", tmp_path / "side" / name / "adapter")
    losses = [result.eval_loss for result in found.results.values()]
    assert all(abs(a - b) > 1e-3 for a, b in itertools.combinations(losses, 2))


def test_cutting_micro_batches_changes_nothing_without_dropout(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "LEAST_TOKENS", 1)
    keys = ("lora.dropout=0.0", "train.batch_size=4", "data.packing=false", "train.max_steps=2")
    variants = {str(rate): make_recipe(*keys, f"train.learning_rate={rate}") for rate in (0.001, 0.01, 0.02, 0.03)}
    whole = train_side_by_side(variants, tmp_path / "whole", rows_in_flight=100)
    for share in (1, 0.5):  # a row of all four adapters at once; of two
        folder = tmp_path / str(share)
        cut = train_side_by_side(variants, folder, rows_in_flight=share)
        for name in variants:
            assert cut.results[name].eval_loss == pytest.approx(whole.results[name].eval_loss, rel=1e-4)
            close(tmp_path / "whole" / name / "adapter", folder / name / "adapter")


def test_adapters_that_pass_in_groups_draw_the_dropout_of_trainings_alone(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "LEAST_TOKENS", 1)
    more = ("train.batch_size=1", "data.packing=false", "train.max_steps=3", "train.eval_steps=3")
    variants = {name: make_recipe(*keys, *more) for name, keys in SETTINGS.items()}
    found = train_side_by_side(variants, tmp_path / "side", rows_in_flight=2)
    for name, recipe in variants.items():
        alone = train(recipe, RunDir(tmp_path / name))
        assert found.results[name].eval_loss == pytest.approx(alone.eval_loss, rel=1e-4)
        close(tmp_path / name / "adapter", tmp_path / "side" / name / "adapter")


@pytest.mark.parametrize(
    ("rows", "in_flight", "length", "size", "passes"),
    [
        (8, 16, 512, 2, [8]),
        (2, 4, 512, 1, [4, 4]),
        (1, 2, 128, 1, [8]),
        (1, 3, 1024, 1, [3, 3, 2]),
        (4, 400, 64, 4, [8]),
    ],
)
def test_no_pass_holds_more_than_memory_was_asked_for(rows, in_flight, length, size, passes):
    rows_at_once, groups = side_by_side.split(rows, 8, in_flight, length)
    assert (rows_at_once, [group.stop - group.start for group in groups]) == (size, passes)


def test_one_that_diverges_does_not_take_the_others_with_it(make_recipe, tmp_path):
    keys = ("lora.dropout=0.0",)
    variants = {"good": make_recipe(*keys), "bad": make_recipe(*keys, "train.learning_rate=1e30", "train.eval_steps=6")}
    variants["good"] = make_recipe(*keys, "train.eval_steps=6")
    found = train_side_by_side(variants, tmp_path / "side")
    assert found.results["bad"] is None
    alone = train(variants["good"], RunDir(tmp_path / "good"))
    assert found.results["good"].eval_loss == pytest.approx(alone.eval_loss, rel=1e-4)
    assert not (tmp_path / "side" / "bad" / "adapter").exists()
    refuse_if_all_diverged(found)
    only = train_side_by_side({"bad": variants["bad"]}, tmp_path / "only")
    with pytest.raises(DivergedError):
        refuse_if_all_diverged(only)


def test_a_folder_is_a_run_that_goes_on_as_one(make_recipe, tmp_path):
    variants = {name: make_recipe(*keys) for name, keys in SETTINGS.items()}
    found = train_side_by_side(variants, tmp_path)
    run_dir = RunDir(tmp_path / "a")
    assert run_dir.is_run
    assert read_json(run_dir.results / "train.json")["eval_loss"] == found.results["a"].eval_loss
    told = []
    again = train(variants["a"], run_dir, progress=told.append)
    assert again.eval_loss == found.results["a"].eval_loss
    assert any("up to date" in str(event.get("message")) for event in told)


@pytest.fixture
def tiny(recipe_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(recipe_text)
    return lambda *arguments: CliRunner().invoke(main, ["train", "tiny.toml", *arguments])


def test_the_verb_trains_every_combination_and_shows_the_best_first(tiny):
    done = tiny("--vary", "train.learning_rate=1e-5,1e-2", "--vary", "lora.r=2,4", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    names = {f"learning_rate={rate}_r={r}" for rate in ("1e-5", "1e-2") for r in (2, 4)}
    assert set(found["adapters"]) == names
    losses = [result["eval_loss"] for result in found["adapters"].values()]
    assert losses == sorted(losses)
    assert "learning_rate=1e-2" in found["best"]
    assert RunDir(Path(found["best"])).is_run
    again = tiny("--vary", "lora.r=2")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "holds adapters already" in again.stderr
    shown = tiny("--vary", "lora.r=2", "--force")
    assert shown.stdout.splitlines()[0].startswith("adapter")
    assert sorted(path.name for path in Path("runs/tiny-side").iterdir() if path.is_dir()) == ["cache", "r=2"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vary", "data.train=a,b"], "--vary data.train: adapters side by side differ in train.learning_rate"),
        (["--vary", "lora.r="], "--vary lora.r: has no values"),
        (["--vary", "lora.r"], "--vary lora.r: has no values"),
        (["--vary", "lora.r=1,x"], "lora.r"),
        (["--vary", "lora.r=2", "--vary", "lora.r=3"], "is given twice"),
        (["--vary", "lora.r=" + ",".join(map(str, range(1, 40)))], "39 adapters are too many at once"),
        (["--vary", "lora.r=2", "--find-lr"], "go one at a time"),
    ],
)
def test_what_cannot_be_varied_is_told_and_nothing_is_written(tiny, arguments, told):
    done = tiny(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "override", ["lora.use_dora=true", "lora.train_embeddings=true", "train.schedule=plateau", "train.batch_size=auto",
                 "train.gradient_checkpointing=true", "train.early_stopping_patience=2", "train.on_overfitting=dropout",
                 'train.trackers=["tensorboard"]', "evaluate.folds=3"]
)  # fmt: skip
def test_what_has_no_place_side_by_side_is_told(make_recipe, tmp_path, override):
    with pytest.raises(RecipeError, match=override.split("=")[0]):
        train_side_by_side({"a": make_recipe(override)}, tmp_path)


@pytest.mark.parametrize("arguments", [["--vary", "lora.r=2,4"], ["--find-lr"]])
def test_what_is_for_one_process_is_refused_in_several_and_nothing_is_written(tiny, monkeypatch, arguments):
    monkeypatch.setattr(cli_train, "launched", lambda: Launch(rank=0, count=2))
    done = tiny(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"edgetune: {arguments[0]} is for one process; start it without a launcher\n"
    assert not Path("runs").exists()


def test_what_was_stopped_begins_again_without_force(tiny):
    assert tiny("--vary", "lora.r=2", "--set", "data.train=missing.jsonl").exit_code == 2
    assert json.loads(Path("runs/tiny-side/side_by_side.json").read_text()) == {"adapters": None}
    done = tiny("--vary", "lora.r=4", "--json")
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in Path("runs/tiny-side").iterdir() if path.is_dir()) == ["cache", "r=4"]


def test_memory_that_runs_out_is_told_in_one_line(tiny, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(side_by_side, "_run", run_out)
    done = tiny("--vary", "lora.r=2,4")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "2 adapters side by side ran out of memory; vary fewer values" in done.stderr
