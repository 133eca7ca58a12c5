"""One step of training in NF4 for each family of encoders."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import transformers
from encoder_families import ENCODER_CONFIGS
from safetensors.torch import load_file
from torch import nn

from edgetune.recipe import Recipe, parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.train.setup import set_up

POSITIONS = 66
"""Two more than the texts of the tokenizer may have: RoBERTa's positions begin after its padding."""


@pytest.fixture(params=sorted(ENCODER_CONFIGS))
def base(request: pytest.FixtureRequest, tiny_encoder: Path, tmp_path: Path) -> Path:
    """A random encoder of the family, with the tokenizer of `tiny_encoder`."""
    name, values = ENCODER_CONFIGS[request.param]
    vocabulary = json.loads((tiny_encoder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = getattr(transformers, name)(
        **{**values, "vocab_size": vocabulary, "max_position_embeddings": max(POSITIONS, 300)}
    )
    folder = tmp_path / request.param
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder / file, folder)
    return folder


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Recipe:
    """One step."""
    rows = [{"text": f"turn {state} lamp {number}", "label": state} for number in range(20) for state in ("on", "off")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return parse_recipe(
        f'[model]\nbase = {json.dumps(str(base))}\ntask = "classification"\ncompute_dtype = "float32"\n'
        f"[data]\ntrain = {json.dumps(str(tmp_path / 'rows.jsonl'))}\neval_fraction = 0.2\n"
        "[lora]\nr = 2\n[train]\nmax_steps = 1\nbatch_size = 8\nwarmup_ratio = 0\nlearning_rate = 1e-3\n",
        source="recipe.toml",
    )


@pytest.mark.slow
def test_every_linear_layer_becomes_nf4_and_learns_in_a_step(base: Path, recipe: Recipe, tmp_path: Path) -> None:
    encoder = transformers.AutoModel.from_pretrained(base)
    linears = {
        name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name
    }
    assert len(linears) >= 8
    model = set_up(recipe, RunDir(tmp_path / "parts").create(), "inputs", lambda _: None).model
    adapted = {
        name.removeprefix("encoder.base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(adapted) == linears
    assert {type(module.base_layer).__name__ for module in adapted.values()} == {"Linear4bit"}
    assert all(module.base_layer.weight.quant_type == "nf4" for module in adapted.values())

    run_dir = RunDir(tmp_path / "run")
    assert math.isfinite(train(recipe, run_dir).eval_loss)
    saved = load_file(run_dir.adapter / "adapter_model.safetensors")
    moved = {name for name, tensor in saved.items() if "lora_B" in name and tensor.abs().max() > 0}
    assert len(moved) == len(linears), "B starts at zero: each that moved has had a gradient"
