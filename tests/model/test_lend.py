"""One loaded base for many trainings."""

from __future__ import annotations

import pytest
import torch

from edgetune.files import read_json
from edgetune.hashes import hash_tree
from edgetune.model.base import load_base
from edgetune.model.lend import lent
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train

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
dropout = 0.1
[train]
batch_size = 2
max_steps = 3
learning_rate = 0.01
"""


def a_recipe(base, rows, *overrides):
    return parse_recipe(RECIPE.format(base=base, rows=rows), source="test", overrides=overrides)


def structure(model):
    """Every module's attributes, tensors by identity."""
    kept = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            kept[name, key] = sorted(map(str, value)) if isinstance(value, dict) else id(value)
    kept["parameters"] = [(name, id(value), value.requires_grad) for name, value in model.named_parameters()]
    kept["attention"] = model.config._attn_implementation
    return kept


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lora.use_dora=true"],
        ["lora.train_embeddings=true"],
        ["model.quantization=none"],
        ["train.gradient_checkpointing=true"],
    ],
    ids=lambda overrides: overrides[0] if overrides else "plain",
)
def test_a_base_is_as_it_was_after_every_training_on_it(tiny_base, tiny_rows, tmp_path, overrides):
    recipe = a_recipe(tiny_base, tiny_rows, *overrides)
    base = load_base(recipe.model)
    before, weights = structure(base), {name: value.clone() for name, value in base.named_parameters()}
    with lent(base):
        train(recipe, RunDir(tmp_path / "r"), base=base)
        assert structure(base) != before
    assert structure(base) == before
    assert all(torch.equal(value, weights[name]) for name, value in base.named_parameters())


def test_a_training_on_a_used_base_gives_the_adapter_of_a_fresh_one(tiny_base, tiny_rows, tmp_path):
    recipe = a_recipe(tiny_base, tiny_rows)
    train(recipe, RunDir(tmp_path / "fresh"))
    base = load_base(recipe.model)
    other = a_recipe(tiny_base, tiny_rows, "lora.r=8", "lora.use_dora=true", "lora.train_embeddings=true")
    with lent(base):
        train(other, RunDir(tmp_path / "other"), base=base)
    with lent(base):
        train(recipe, RunDir(tmp_path / "again"), base=base)
    assert hash_tree(tmp_path / "again" / "adapter") == hash_tree(tmp_path / "fresh" / "adapter")
    losses = [read_json(tmp_path / name / "results" / "train.json")["eval_loss"] for name in ("fresh", "again")]
    assert losses[0] == losses[1]


def test_a_base_is_as_it_was_after_a_training_that_failed(tiny_base, tiny_rows):
    recipe = a_recipe(tiny_base, tiny_rows)
    base = load_base(recipe.model)
    before = structure(base)

    def fail(base):
        base.get_input_embeddings().register_forward_hook(lambda *_: None)
        base.lm_head = torch.nn.Identity()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), lent(base):
        fail(base)
    assert structure(base) == before
