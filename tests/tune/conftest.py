"""Studies small enough to be run many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tune_bench import PaperBench

from edgetune.recipe import Recipe, parse_recipe

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
eval_steps = 1
learning_rate = 0.01
[evaluate]
metric = "loss"
max_new_tokens = 4
[tune]
trials = 4
sampler = "random"
[tune.space]
"train.learning_rate" = {{ low = 1e-4, high = 0.1, log = true }}
"lora.r" = [2, 4, 8]
"""


@pytest.fixture(scope="session")
def recipe_text(tiny_base: Path, tiny_rows: Path) -> str:
    """A search over learning rate and rank, each trial of two steps."""
    return RECIPE.format(base=tiny_base, rows=tiny_rows)


@pytest.fixture(scope="session")
def make_recipe(recipe_text: str) -> Callable[..., Recipe]:
    """`make_recipe("tune.trials=2", ..., space={...})`: the recipe with keys set as on the command line.

    Where the space has train.epochs, no max_steps stand in their way.
    """

    def make(*overrides: str, space: dict[str, Any] | None = None) -> Recipe:
        recipe = parse_recipe(recipe_text, source="test", name="tiny", overrides=overrides)
        if space is None:
            return recipe
        steps = None if "train.epochs" in space else recipe.train.max_steps
        train, tune = (
            dataclasses.replace(recipe.train, max_steps=steps),
            dataclasses.replace(recipe.tune, space=space),
        )
        return dataclasses.replace(recipe, train=train, tune=tune)

    return make


@pytest.fixture
def paper_bench(monkeypatch: pytest.MonkeyPatch) -> PaperBench:
    """Every search in this test runs on it."""
    bench = PaperBench()
    monkeypatch.setattr("edgetune.tune.study.Workbench", lambda *_: bench)
    return bench


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without their pictures, which take longer than all else; test_pictures.py looks at them."""
    monkeypatch.setattr("edgetune.tune.search._draw", lambda *_: None)
    monkeypatch.setattr("edgetune.tune.sensitivity.draw_sensitivity", lambda *_: None)
