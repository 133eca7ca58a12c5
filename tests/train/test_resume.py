"""Stopping and going on: signals save, SIGKILL loses nothing, an interrupted run ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from patience import LONG_S
from warm_process import run_script

from edgetune.errors import RunError, Stopped
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint, fit, loop
from edgetune.train.events import read_events
from edgetune.train.loop import train
from edgetune.train.stop import listen_for_stop


def adapter_bytes(run_dir: RunDir) -> bytes:
    return (run_dir.adapter / "adapter_model.safetensors").read_bytes()


def steps_of(run_dir: RunDir, key: str) -> list[int]:
    return [event["step"] for event in read_events(run_dir.events) if key in event]


class Killed(BaseException):
    """What no code catches."""


def killed_at(monkeypatch, target, name, call):
    """Raise Killed at the given call of target.name."""
    calls = []
    original = getattr(target, name)

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, fail)


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "adamw_8bit"])
def test_a_run_that_dies_between_checkpoints_ends_with_the_same_bytes(make_recipe, tmp_path, monkeypatch, optimizer):
    recipe = make_recipe(f"train.optimizer={optimizer}", "train.max_steps=8", "train.eval_steps=3")
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    expected = train(recipe, whole)
    with monkeypatch.context() as patch:
        killed_at(patch, fit, "make_step", 6)
        with pytest.raises(Killed):
            train(recipe, broken)
    seen = []
    result = train(recipe, broken, progress=seen.append)
    assert {"stage": "train", "message": "goes on after step 3 of 8"} in seen
    assert adapter_bytes(broken) == adapter_bytes(whole)
    assert (result.train_loss, result.eval_loss, result.tokens) == (
        expected.train_loss,
        expected.eval_loss,
        expected.tokens,
    )
    assert steps_of(broken, "loss") == list(range(1, 9))
    assert steps_of(broken, "eval_loss") == [3, 6, 8]


def test_steps_beyond_the_epochs_go_on_with_the_same_bytes_after_a_death(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("train.epochs=0.2", "train.max_steps=14", "train.eval_steps=5")
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    assert train(recipe, whole).steps == 14
    with monkeypatch.context() as patch:
        killed_at(patch, fit, "make_step", 13)
        with pytest.raises(Killed):
            train(recipe, broken)
    seen = []
    train(recipe, broken, progress=seen.append)
    assert {"stage": "train", "message": "goes on after step 10 of 14"} in seen
    assert adapter_bytes(broken) == adapter_bytes(whole)


def test_a_best_adapter_written_after_the_last_checkpoint_is_taken_back(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("train.checkpoint_steps=3", "train.eval_steps=2", "train.max_steps=8")
    run_dir = RunDir(tmp_path / "r")
    killed_at(monkeypatch, fit, "make_step", 6)
    with pytest.raises(Killed):
        train(recipe, run_dir)
    after_four = adapter_bytes(run_dir)
    killed_at(monkeypatch, loop, "_run_steps", 1)
    with pytest.raises(Killed):
        train(recipe, run_dir)
    assert adapter_bytes(run_dir) != after_four


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe()
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    train(recipe, whole)
    with monkeypatch.context() as patch:
        killed_at(patch, fit, "make_step", 6)
        with pytest.raises(Killed):
            train(recipe, broken)
    newest = checkpoint.find(broken)[0] / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    seen = []
    train(recipe, broken, progress=seen.append)
    assert {"stage": "train", "message": "goes on after step 2 of 6"} in seen
    assert adapter_bytes(broken) == adapter_bytes(whole)


def test_when_no_checkpoint_can_be_read_the_run_says_so_and_leaves_all_as_it_is(make_recipe, tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path / "r")
    with monkeypatch.context() as patch:
        killed_at(patch, fit, "make_step", 3)
        with pytest.raises(Killed):
            train(make_recipe(), run_dir)
    for folder in checkpoint.find(run_dir):
        (folder / "optimizer.pt").write_bytes(b"garbage\n")
    before = {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"step-00000002.optimizer\.pt: cannot be read: damaged .*; start.*--force$"):
        train(make_recipe(), run_dir)
    assert {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()} == before


def test_only_the_newest_two_checkpoints_stay_and_they_hold_plain_tensors(make_recipe, tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path / "r")
    killed_at(monkeypatch, fit, "make_step", 6)
    with pytest.raises(Killed):
        train(make_recipe("train.checkpoint_steps=1"), run_dir)
    assert [folder.name for folder in checkpoint.find(run_dir)] == ["step-00000005", "step-00000004"]
    names = {path.name for path in checkpoint.find(run_dir)[0].iterdir()}
    assert names == {"adapter.safetensors", "optimizer.pt", "state.json", "best"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_goes_on_to_the_same_bytes(make_recipe, tmp_path, number, code):
    recipe = make_recipe()
    whole, stopped = RunDir(tmp_path / "whole"), RunDir(tmp_path / "stopped")
    train(recipe, whole)

    def interrupt(event):
        if event.get("step") == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="stopped after step 3 of 6; everything is saved") as caught:
        train(recipe, stopped, progress=interrupt)
    assert caught.value.exit_code == code
    assert checkpoint.find(stopped)[0].name == "step-00000003"
    train(recipe, stopped)
    assert adapter_bytes(stopped) == adapter_bytes(whole)


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from edgetune.train.stop import listen_for_stop
with listen_for_stop() as request:
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.signal_number == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=LONG_S).returncode == -signal.SIGTERM


def test_listening_outside_the_main_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with listen_for_stop() as request:
            seen.append((request.signal_number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def start(recipe: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "edgetune", "train", str(recipe), "-o", str(run)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sigkill_at_any_moment_then_the_same_command_ends_with_the_same_bytes(recipe_text, tmp_path, seed):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text.replace("max_steps = 6", "max_steps = 30\ncheckpoint_steps = 1"))
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    assert start(recipe, whole.path).wait() == 0
    generator = random.Random(seed)
    killed = 0
    while not broken.loss_curve.exists() and killed < 10:
        process = start(recipe, broken.path)
        size = broken.events.stat().st_size if broken.events.exists() else 0
        while process.poll() is None and (not broken.events.exists() or broken.events.stat().st_size <= size):
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.5))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    assert start(recipe, broken.path).wait() == 0
    assert adapter_bytes(broken) == adapter_bytes(whole)
    assert steps_of(broken, "loss") == list(range(1, 31))
    assert not [path for path in broken.path.rglob(".*") if path.name.endswith((".tmp", ".old"))]


def test_sigkill_while_a_checkpoint_is_written_then_the_same_recipe_ends_with_the_same_bytes(
    recipe_text, make_recipe, tmp_path
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text)
    die_in_second_checkpoint = """
import os, signal, sys, torch
torch.set_num_threads(int(sys.argv.pop(1)))
from edgetune.train import checkpoint
write, calls = checkpoint.write_json, []
def die(*args):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args)
checkpoint.write_json = die
from edgetune.cli import main
main(sys.argv[1:])
"""
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    script = tmp_path / "die.py"
    script.write_text(die_in_second_checkpoint)
    words = (torch.get_num_threads(), "train", recipe, "-o", broken.path)
    assert run_script(script, *words, out=tmp_path) == -signal.SIGKILL
    assert [folder.name for folder in checkpoint.find(broken)] == ["step-00000002"]
    seen = []
    train(make_recipe(), broken, progress=seen.append)
    train(make_recipe(), whole)
    assert {"stage": "train", "message": "goes on after step 2 of 6"} in seen
    assert adapter_bytes(broken) == adapter_bytes(whole)
    assert steps_of(broken, "loss") == list(range(1, 7))
