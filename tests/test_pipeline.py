"""A recipe through all stages on tiny objects: edgetune/pipeline.py, `edgetune run`, `edgetune evaluate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RECIPE = """
[model]
base = "{base}"
[data]
train = "{rows}"
max_seq_len = 128
[lora]
r = 4
[train]
max_steps = 20
batch_size = 4
gradient_accumulation_steps = 1
[evaluate]
metric = "json"
max_rows = 8
max_new_tokens = 8
bootstrap_samples = 100
"""


def _edgetune(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "edgetune", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_base, tiny_rows):
    """A folder with tiny.toml, and the finished run of it in runs/tiny."""
    path = tmp_path_factory.mktemp("pipeline")
    (path / "tiny.toml").write_text(RECIPE.format(base=tiny_base, rows=tiny_rows), encoding="utf-8")
    done = _edgetune("run", "tiny.toml", cwd=path)
    assert done.returncode == 0, done.stderr
    (path / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    (path / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return path


def test_the_table_is_all_that_stdout_holds(folder):
    lines = (folder / "stdout.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("model")
    names = ["base", "fine-tuned (4-bit + adapter)", "merged", "int4 bundle"]
    assert [line.split("  ")[0] for line in lines[1:]] == names


def test_stderr_says_where_the_bundle_is_and_what_comes_next(folder):
    assert "edgetune chat runs/tiny/bundle" in (folder / "stderr.txt").read_text(encoding="utf-8")
