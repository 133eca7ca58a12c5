"""Missing extras: exit code 3 and the line that installs them. edgetune/cli/extras.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from patience import LONG_S

import edgetune
from edgetune.cli import main
from edgetune.cli.extras import missing_extra

BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from edgetune.cli import main
main({arguments!r})
"""


def _run(arguments, blocked, *, cwd):
    code = BLOCKED.format(blocked=blocked, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(edgetune.__file__).parent.parent)},
    )


@pytest.mark.parametrize("verb", ["run", "plan", "train", "merge", "export"])
def test_a_verb_without_torch_says_what_to_install(verb, tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text('[model]\nbase = "edgetune:nano"\n[data]\ntrain = "edgetune:home"\n')
    blocked = ["torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "safetensors"]
    done = _run([verb, str(recipe)], blocked, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "pip install 'edgetune[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_without_torch_says_what_to_install(tmp_path):
    done = _run(["evaluate", str(tmp_path), "--data", "rows.jsonl"], ["torch", "transformers"], cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "pip install 'edgetune[train]'" in done.stderr


def test_a_broken_installation_is_told_from_a_missing_extra():
    assert "pip install edgetune" in str(missing_extra(ModuleNotFoundError(name="numpy")))


def test_a_module_of_nobody_is_a_bug():
    assert missing_extra(ModuleNotFoundError(name="edgetune.data.nothing")) is None


@pytest.mark.parametrize("name", ["scipy.optimize", "pyarrow", "sklearn", "psutil"])
def test_what_training_needs_by_the_way_is_brought_by_its_extra(name):
    assert "pip install 'edgetune[train]'" in str(missing_extra(ModuleNotFoundError(name=name)))


def test_a_population_without_ray_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "edgetune.tune.on_ray", raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "a.toml"
    recipe.write_text('[model]\nbase = "edgetune:nano"\n[data]\ntrain = "edgetune:home"\n[tune]\npopulation = 4\n')
    done = CliRunner().invoke(main, ["tune", str(recipe)])
    assert done.exit_code == 3, done.stderr
    assert "pip install 'edgetune[ray]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
