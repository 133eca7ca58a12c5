"""`edgetune train` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgetune.cli.train import command
from edgetune.errors import RecipeError, RunError

RECIPE = """
[model]
base = "{base}"
compute_dtype = "float32"
[data]
train = "{rows}"
eval_fraction = 0.2
max_seq_len = 128
[lora]
r = 4
[train]
batch_size = 2
gradient_accumulation_steps = 1
max_steps = 2
"""


@pytest.fixture
def recipe(tiny_base, tiny_rows, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(base=tiny_base, rows=tiny_rows))
    return path


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_json_is_one_document_on_stdout_and_progress_goes_to_stderr(recipe, tmp_path):
    result = run(recipe, "-o", tmp_path / "r", "--json")
    document = json.loads(result.stdout)
    assert document["adapter"] == str(tmp_path / "r" / "adapter")
    assert document["steps"] == 2
    assert "rows (prompt-completion: " in result.stderr


def test_the_same_command_again_is_up_to_date(recipe, tmp_path):
    first = run(recipe, "-o", tmp_path / "r")
    second = run(recipe, "-o", tmp_path / "r")
    assert second.stdout == first.stdout
    assert "up to date" in second.stderr


def test_another_recipe_is_refused_and_force_replaces_the_run(recipe, tmp_path):
    run(recipe, "-o", tmp_path / "r", "--set", "train.max_steps=1")
    with pytest.raises(RunError, match=r"train\.max_steps is 1 there, 2 here; .* --force"):
        run(recipe, "-o", tmp_path / "r")
    assert json.loads(run(recipe, "-o", tmp_path / "r", "--force", "--json").stdout)["steps"] == 2


def test_a_recipe_that_cannot_stand_touches_nothing(recipe, tmp_path):
    with pytest.raises(RecipeError, match="unknown key"):
        run(recipe, "-o", tmp_path / "r", "--set", "train.epoch=1")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "edgetune", "train", str(recipe), "-o", str(tmp_path / "file" / "r")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("edgetune: ")
    assert process.stderr.count("\n") == 1
