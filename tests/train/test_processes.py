"""Several processes, as torchrun and accelerate launch start them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from edgetune.run_dir import RunDir
from edgetune.train.events import read_events
from edgetune.train.loop import train


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on the CPU")
def test_two_processes_train_as_one_does_with_twice_the_accumulation(recipe_text, make_recipe, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text.replace("dropout = 0.1", "dropout = 0.0").replace("epochs = 10", "epochs = 1"))
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    train(make_recipe("lora.dropout=0.0", "train.epochs=1.0", "train.gradient_accumulation_steps=4"), one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "edgetune", "train", str(recipe), "-o", str(two.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [[event["loss"] for event in read_events(run.events) if "loss" in event] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # sums in another order
    first, second = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=5e-2, atol=2e-3, msg=name)
