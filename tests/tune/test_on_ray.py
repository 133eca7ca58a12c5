"""Populations on Ray Tune itself, in two worker processes, by the command that a user gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from patience import LONG_S
from safetensors.torch import load_file

from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SPACE = """
"train.learning_rate" = { low = 1e-4, high = 0.05, log = true }
"lora.dropout" = { low = 0.0, high = 0.2 }
"""


@pytest.fixture
def command(recipe_text, tmp_path):
    """`edgetune tune` of four members on two workers, three generations."""
    text = recipe_text[: recipe_text.index("[tune.space]")] + "[tune.space]" + SPACE
    text = text.replace("max_steps = 2\neval_steps = 1", "max_steps = 6\neval_steps = 2")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(text)
    options = ["--population", "4", "--workers", "2", "--json", "-o", tmp_path / "p"]
    return [*map(str, [sys.executable, "-m", "edgetune", "tune", recipe, *options])]


def done(command):
    finished = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout), finished.stderr


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def courses(document):
    """What does not hang on the clock."""
    return [{**one, "wall_s": 0} for one in document["outcomes"]]


def own_processes(marker):
    """Processes that have the folder of a test in their command or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in " ".join(process.cmdline()) or process.environ().get("EDGETUNE_TEST") == marker:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_two_workers_train_a_population_whose_best_is_a_run_and_leave_no_process(command, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETUNE_TEST", str(tmp_path))
    document, told = done(command)
    assert len(document["outcomes"]) == 12
    assert document["copies"] == 2
    first = {one["member"]: one["eval_loss"] for one in document["outcomes"] if one["generation"] == 1}
    copy = next(one for one in document["outcomes"] if one["generation"] == 2 and one["parent"] != one["member"])
    assert copy["member"] == max(first, key=first.__getitem__)
    assert copy["parent"] == min(first, key=first.__getitem__)
    assert "copied from member" in told
    assert "ray" not in told.lower()
    monkeypatch.delenv("EDGETUNE_TEST")
    assert own_processes(str(tmp_path)) == []
    torch.set_num_threads(1)
    train(load_recipe(tmp_path / "p" / "best.toml"), RunDir(tmp_path / "again"))
    kept, again = (weights(folder) for folder in (tmp_path / "p" / "best", tmp_path / "again"))
    assert all(torch.equal(kept[name], again[name]) for name in again)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_population_that_is_stopped_or_killed_goes_on_to_the_same_end(command, tmp_path, number, monkeypatch):
    whole, _ = done([*command[:-1], str(tmp_path / "whole")])
    monkeypatch.setenv("EDGETUNE_TEST", str(tmp_path))
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    monkeypatch.delenv("EDGETUNE_TEST")
    while not list((tmp_path / "p").glob("population/generation-0002/member-*.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(number)
    _, told = first.communicate(timeout=LONG_S)
    assert first.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert number == signal.SIGKILL or "the same command goes on from there" in told
    _, left = psutil.wait_procs(own_processes(str(tmp_path)), timeout=LONG_S)
    assert left == []
    found, told = done(command)
    assert "goes on after generation" in told
    assert courses(found) == courses(whole)


def test_an_error_in_a_worker_is_the_user_s_in_one_line(command, tmp_path):
    Path(tmp_path, "p", "cache").mkdir(parents=True)
    finished = subprocess.run(
        [*command, "--set", "lora.target_modules=['q_proj', 'o_proj']", "--set", "lora.init_from=nowhere"],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "nowhere" in finished.stderr.splitlines()[-1]


def test_an_address_where_no_cluster_is_is_an_error_in_one_line(command):
    finished = subprocess.run(
        [*command, "--set", "tune.ray_address=127.0.0.1:1"], capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert finished.returncode == 2, finished.stderr
    assert "no Ray cluster answers at 127.0.0.1:1" in finished.stderr.splitlines()[-1]
