"""Several processes, as torchrun and accelerate launch start them: they train, fail and go on as one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from warm_process import run_script

from edgetune.errors import HardwareError
from edgetune.launch import Launch, launched
from edgetune.run_dir import RunDir
from edgetune.train import processes
from edgetune.train.batches import share
from edgetune.train.events import read_events
from edgetune.train.loop import train

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on the CPU")


@dataclass(frozen=True)
class Ended:
    """What the processes of a training said, and with which code each ended."""

    codes: list[int]
    stdout: str
    stderr: str


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Ended]:
    """`launch("train", recipe, ..., count=3, stop=2)`: edgetune in three processes; the second stops in step 2."""

    def start(*words: str | Path, count: int = 2, stop: int = 0) -> Ended:
        script = Path(__file__).with_name("ranks.py")
        code = run_script(script, count, tmp_path, stop, *words, out=tmp_path)
        stdout, stderr = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        assert code == 0, stderr
        return Ended(json.loads((tmp_path / "codes.json").read_text()), stdout, stderr)

    return start


def losses(run_dir: RunDir, key: str = "loss") -> list[float]:
    return [event[key] for event in read_events(run_dir.events) if key in event]


def adapter(run_dir: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run_dir.adapter / "adapter_model.safetensors")


@pytest.fixture
def recipe_file(recipe_text: str, tmp_path: Path) -> Path:
    """The small recipe without dropout, of which every process draws its own."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text.replace("dropout = 0.1", "dropout = 0.0"))
    return path


@pytest.fixture
def alone(make_recipe: Callable, tmp_path: Path) -> RunDir:
    """The same training by one process."""
    run_dir = RunDir(tmp_path / "alone")
    train(make_recipe("lora.dropout=0.0"), run_dir)
    return run_dir


@on_cpu
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_train_as_one_does_and_see_no_sample_twice(launch, recipe_file, alone, tmp_path, count):
    run_dir = RunDir(tmp_path / "together")
    done = launch("train", recipe_file, "-o", run_dir.path, "--json", count=count)
    assert done.codes == [0] * count, done.stderr
    document = json.loads(done.stdout)  # printed once
    one = json.loads((alone.results / "train.json").read_text())
    for key in ("steps", "tokens", "trained_tokens", "best_step"):
        assert document[key] == one[key]
    assert document["processes"] == count
    for key in ("loss", "eval_loss"):
        assert losses(run_dir, key) == pytest.approx(losses(alone, key), rel=1e-5)  # sums in another order
    for name, tensor in adapter(alone).items():
        torch.testing.assert_close(adapter(run_dir)[name], tensor, rtol=1e-2, atol=1e-4, msg=name)
    seen = [
        (step, sample)
        for rank in range(count)
        for line in (tmp_path / f"seen-{rank}.jsonl").read_text().splitlines()
        for step, rows in [json.loads(line)]
        for row in rows
        for sample in row
    ]
    assert len(seen) == len(set(seen))
    by_step = [{sample for number, sample in seen if number == step} for step in range(1, document["steps"] + 1)]
    assert all(by_step)


@pytest.mark.slow
@on_cpu
def test_a_run_goes_on_with_another_number_of_processes_where_a_signal_to_one_of_them_stopped_it(
    launch, recipe_file, alone, make_recipe, tmp_path
):
    run_dir = RunDir(tmp_path / "changing")
    done = launch("train", recipe_file, "-o", run_dir.path, count=3, stop=2)
    assert done.stderr.count("edgetune: stopped after step 2 of 6; everything is saved") == 1, done.stderr
    assert done.codes == [128 + signal.SIGTERM] * 3
    done = launch("train", recipe_file, "-o", run_dir.path, count=2, stop=2)
    assert "goes on after step 2 of 6" in done.stderr
    assert "stopped after step 4 of 6" in done.stderr
    messages = []
    train(make_recipe("lora.dropout=0.0"), run_dir, progress=messages.append)
    assert {"stage": "train", "message": "goes on after step 4 of 6"} in messages
    for key in ("loss", "eval_loss"):
        assert losses(run_dir, key) == pytest.approx(losses(alone, key), rel=1e-5)


@pytest.mark.slow
@on_cpu
def test_a_run_of_several_processes_with_dropout_goes_on_to_the_same_bytes(launch, recipe_text, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch("train", recipe, "-o", whole).codes == [0, 0]
    assert "stopped after step 3 of 6" in launch("train", recipe, "-o", broken, stop=3).stderr
    assert launch("train", recipe, "-o", broken).codes == [0, 0]
    first, second = (run / "adapter" / "adapter_model.safetensors" for run in (whole, broken))
    assert first.read_bytes() == second.read_bytes()


@on_cpu
@pytest.mark.slow
def test_an_error_of_any_process_is_said_once_and_ends_all_with_its_code(launch, recipe_file, tmp_path):
    run = tmp_path / "run"
    done = launch("train", recipe_file, "-o", run, "--set", "data.train=nowhere.jsonl")
    assert done.codes == [2, 2]
    assert done.stderr.count("nowhere.jsonl") == 1
    assert done.stdout == ""


@pytest.mark.slow
@on_cpu
def test_verbs_that_are_not_shared_are_done_by_the_main_process_alone(launch, recipe_file):
    done = launch("plan", recipe_file, "--json")
    assert done.codes == [0, 0], done.stderr
    assert json.loads(done.stdout)["base"]


def test_a_launcher_s_variables_say_which_process_this_is():
    assert launched({}) == Launch()
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launched(torchrun) == Launch(3, 4, 1, 2)
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert launched(mpi) == Launch(1, 2, 0, 1)
    assert launched({"RANK": "0", "WORLD_SIZE": "1"}) == Launch()
    assert launched({"RANK": "x", "WORLD_SIZE": ""}) == Launch()


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("sizes", [[8], [1], [4, 4, 4, 4], [5, 5, 2], [3, 1]])
def test_the_shares_of_a_step_have_each_row_once_and_about_equally_many(count, sizes):
    rows = iter(range(sum(sizes)))
    step = [[next(rows) for _ in range(size)] for size in sizes]
    shares = [share(step, rank, count) for rank in range(count)]
    assert sorted(row for mine in shares for piece in mine for row in piece) == list(range(sum(sizes)))
    numbers = [len(mine) for mine in shares]
    assert max(numbers) - min(numbers) <= 1
    assert count > 1 or shares == [step]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_divides_the_model_is_refused(monkeypatch, name):
    monkeypatch.setattr(processes, "launched", lambda: SimpleNamespace(count=2))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with (
        pytest.raises(HardwareError, match=f"the launcher asks for {name}.*accelerate launch --multi_gpu"),
        processes.together(),
    ):
        raise AssertionError("joined")
