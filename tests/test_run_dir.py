"""The run folder: what is up to date, whose run it is. edgetune/run_dir.py."""

from __future__ import annotations

import os

import pytest

from edgetune.errors import RunError
from edgetune.hashes import hash_values
from edgetune.run_dir import RunDir, claim, find_run

TRAIN = '[train]\nseed = 1\nlearning_rate = "auto"\n'
ASKED = '[model]\nbase = "b"\n[data]\ntrain = "t"\n' + TRAIN + "[export]\nblock_size = 32\n"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"stages": []}', '{"stages": {"train": 1}}', '{"asked": "x"}'])
def test_a_damaged_run_json_is_named(tmp_path, text):
    run_dir = RunDir(tmp_path)
    run_dir.run_json.write_text(text)
    with pytest.raises(RunError, match=r"run\.json: .*; begin the run anew: edgetune run RECIPE --force"):
        run_dir.read()


def test_a_stage_is_current_only_for_the_same_inputs(tmp_path):
    run_dir = RunDir(tmp_path).create()
    run_dir.finish("train", hash_values("a", 1), steps=3)
    assert run_dir.is_current("train", hash_values("a", 1))
    assert not run_dir.is_current("train", hash_values("a", 2))
    run_dir.forget("train")
    assert not run_dir.is_current("train", hash_values("a", 1))


def test_a_folder_of_another_recipe_is_refused_with_the_keys_that_differ(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    claim(run_dir, ASKED)
    run_dir.checkpoints.mkdir()
    with pytest.raises(RunError, match=r'train.learning_rate is "auto" there, 0.1 here'):
        claim(run_dir, ASKED.replace('"auto"', "0.1"))


def test_a_recipe_may_be_mended_while_nothing_was_made_from_it(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    claim(run_dir, ASKED)
    mended = ASKED.replace('"auto"', "0.1")
    claim(run_dir, mended)
    assert run_dir.read()["asked"]["train"]["learning_rate"] == 0.1
    assert run_dir.recipe.read_text() == mended


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["recipe.toml", "adapter", "results"])
def test_files_of_the_user_in_a_folder_that_is_no_run_are_not_touched(tmp_path, name, force):
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=rf"is no run folder \(no run.json\) but has {name}.*--out"):
        claim(RunDir(tmp_path), ASKED, force=force)
    assert os.listdir(tmp_path) == [name]


def test_the_same_recipe_its_resolved_form_and_another_export_are_the_same_run(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    claim(run_dir, ASKED)
    claim(run_dir, ASKED.replace("block_size = 32", "block_size = 128"))
    run_dir.recipe.write_text(ASKED.replace('"auto"', "0.002"))
    claim(run_dir, ASKED)
    claim(run_dir, ASKED.replace('"auto"', "0.002"))


def test_force_empties_the_folder_of_a_run_but_keeps_the_cache_and_what_is_not_ours(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    claim(run_dir, ASKED)
    for path in (run_dir.adapter / "a", run_dir.cache / "c", run_dir.path / "notes.txt", run_dir.events):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    claim(run_dir, ASKED.replace("seed = 1", "seed = 2"), force=True)
    assert sorted(os.listdir(run_dir.path)) == ["cache", "notes.txt", "recipe.toml", "run.json"]
    assert run_dir.read()["asked"]["train"]["seed"] == 2


def test_the_run_of_a_path_is_the_folder_itself_or_the_one_it_lies_in(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    claim(run_dir, ASKED)
    run_dir.bundle.mkdir()
    assert find_run(run_dir.path) == run_dir
    assert find_run(run_dir.bundle) == RunDir(run_dir.path.resolve())
    assert find_run(tmp_path) is None


def test_a_run_from_before_a_key_was_there_is_the_same_run(tmp_path):
    """A key with a default joins a table in a later version; the folder's record lacks it."""
    toml = '[model]\nbase = "x"\n[data]\ntrain = "y"\n[lora]\nr = 8\ntrain_embeddings = false\n'
    run_dir = RunDir(tmp_path / "run")
    claim(run_dir, toml.replace("train_embeddings = false\n", ""))
    run_dir.finish("train", "inputs")
    claim(run_dir, toml)
    with pytest.raises(RunError, match=r"lora\.train_embeddings is false there, true here"):
        claim(run_dir, toml.replace("false", "true"))


def test_a_run_from_when_a_key_was_still_there_is_the_same_run(tmp_path):
    """A key goes in a later version; the folder's record has it."""
    toml = '[model]\nbase = "x"\n[data]\ntrain = "y"\n[train]\nseed = 1\n'
    for factor in (0.5, 0.3):
        run_dir = RunDir(tmp_path / f"run-{factor}")
        claim(run_dir, f"{toml}plateau_factor = {factor}\n")
        run_dir.finish("train", "inputs")
    claim(RunDir(tmp_path / "run-0.5"), toml)
    with pytest.raises(RunError, match=r"train\.plateau_factor is 0\.3 there, 0\.5 here"):
        claim(RunDir(tmp_path / "run-0.3"), toml)
