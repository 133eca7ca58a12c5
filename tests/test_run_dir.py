"""The run folder: atomic writes, hashes, what is up to date."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgetune.errors import RunError
from edgetune.run_dir import (
    RunDir,
    atomic_file,
    atomic_folder,
    claim,
    hash_tree,
    hash_values,
    only_process,
    provenance,
    read_json,
    write_json,
)


def _fail_inside(block, *, write):
    with block as temporary:
        write(temporary)
        raise ValueError("stop")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="stop"):
        _fail_inside(atomic_file(path), write=lambda temporary: temporary.write_text("half"))
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "bundle"
    with atomic_folder(folder) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(ValueError, match="stop"):
        _fail_inside(atomic_folder(folder), write=lambda temporary: (temporary / "new").write_text("2"))
    assert [item.name for item in folder.iterdir()] == ["old"]
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("2")
    assert [item.name for item in folder.iterdir()] == ["new"]
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="cannot be written: No space left"), atomic_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")


def test_a_full_disk_that_a_library_meets_is_the_same_error(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors 0.6
    with (
        pytest.raises(RunError, match="b: cannot be written: No space left on device; free some space"),
        atomic_folder(tmp_path / "b"),
    ):
        raise RuntimeError(said)
    assert os.listdir(tmp_path) == []


def test_a_damaged_run_json_is_named(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.run_json.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run_dir.read()


def test_a_stage_is_current_only_for_the_same_inputs(tmp_path):
    run_dir = RunDir(tmp_path).create()
    run_dir.finish("train", hash_values("a", 1), steps=3)
    assert run_dir.is_current("train", hash_values("a", 1))
    assert not run_dir.is_current("train", hash_values("a", 2))
    run_dir.forget("train")
    assert not run_dir.is_current("train", hash_values("a", 1))


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = hash_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_tree(tmp_path) != first


TRAIN = '[train]\nseed = 1\nlearning_rate = "auto"\n'
ASKED = '[model]\nbase = "b"\n[data]\ntrain = "t"\n' + TRAIN + "[export]\nblock_size = 32\n"


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


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_second_process_in_the_folder_is_refused_until_the_first_ends(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    with (
        only_process(run_dir),
        pytest.raises(RunError, match="another process is at work in it; wait"),
        only_process(run_dir),
    ):
        pytest.fail("two at once")
    with only_process(run_dir):
        assert os.listdir(run_dir.path) == []


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


def test_a_result_names_the_commit_of_the_clone_it_was_made_in(tmp_path, monkeypatch):
    monkeypatch.setattr("edgetune.run_dir.__file__", str(tmp_path / "edgetune" / "run_dir.py"))
    assert provenance()["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    assert len(provenance()["commit"]) == 40
    (tmp_path / "file").write_text("two")
    assert provenance()["commit"].endswith("+")
