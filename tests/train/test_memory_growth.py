"""Memory does not grow with the data set nor with the steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
import json
import sys
from pathlib import Path

from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train

result = train(load_recipe(Path(sys.argv[1])), RunDir(Path(sys.argv[2])))
print(json.dumps([result.steps, result.peak_bytes]))
"""
RECIPE = """
[model]
base = "{base}"
[data]
train = "{rows}"
eval_fraction = 0.02
max_seq_len = 128
[train]
epochs = 1
batch_size = 2
gradient_accumulation_steps = 1
learning_rate = 1e-3
"""


def trained(folder: Path, base: Path, lines: list[str]) -> tuple[int, float]:
    """Steps and peak MiB of a training on these rows, in a process of its own."""
    folder.mkdir()
    rows, recipe = folder / "rows.jsonl", folder / "recipe.toml"
    rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    recipe.write_text(RECIPE.format(base=base, rows=rows), encoding="utf-8")
    command = [sys.executable, "-c", TRAIN, str(recipe), str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps, peak = json.loads(done.stdout.splitlines()[-1])
    return steps, peak / 1024**2


@pytest.mark.slow
def test_ten_times_the_rows_and_steps_take_no_more_memory(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> None:
    lines = tiny_rows.read_text(encoding="utf-8").splitlines()
    numbered = [
        json.dumps({**json.loads(line), "prompt": f"{json.loads(line)['prompt']} {copy}"})
        for copy in range(20)
        for line in lines
    ]
    few, many = (trained(tmp_path / str(count), tiny_base, numbered[:count]) for count in (128, 1280))
    assert many[0] > 8 * few[0]
    assert many[1] - few[1] < 24
