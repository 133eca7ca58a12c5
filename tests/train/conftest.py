"""A training small enough to be run many times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.recipe import Recipe, parse_recipe

RECIPE = """
[model]
base = "{base}"
compute_dtype = "{dtype}"
[data]
train = "{rows}"
eval_fraction = 0.2
max_seq_len = 128
[lora]
r = 4
dropout = 0.1
[train]
batch_size = 2
gradient_accumulation_steps = 2
epochs = 10
max_steps = 6
eval_steps = 2
learning_rate = 0.01
"""


@pytest.fixture
def recipe_text(tiny_base: Path, tiny_rows: Path) -> str:
    """A recipe of six steps in float32 with dropout."""
    return RECIPE.format(base=tiny_base, rows=tiny_rows, dtype="float32")


@pytest.fixture
def make_recipe(recipe_text: str) -> Callable[..., Recipe]:
    """`make_recipe("train.seed=1", ...)`: the recipe with keys set as on the command line."""

    def make(*overrides: str) -> Recipe:
        return parse_recipe(recipe_text, source="test", overrides=overrides)

    return make
