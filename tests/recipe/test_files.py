"""The recipes that come with EdgeTune: they read, and they fit the budgets that they state."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgetune.model.memory import FRAGMENTATION, estimate
from edgetune.model.on_device import expect_on_device
from edgetune.planning.facts import find_facts
from edgetune.planning.stages import largest, plan_stages
from edgetune.recipe import load_recipe, parse_size

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
HUB_SHAPES = {
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
    "Qwen/Qwen3-14B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "google/gemma-3-1b-it": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""config.json of the bases that recipes name by hub id: an estimate needs no more, and tests have no network."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_folder_is_estimated_to_fit_its_budget(path, tmp_path):
    recipe = load_recipe(path)
    if recipe.model.base in HUB_SHAPES:
        (tmp_path / "config.json").write_text(json.dumps(HUB_SHAPES[recipe.model.base]))
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, base=str(tmp_path)))
    if recipe.budget.gpu_memory:
        allowed = parse_size(recipe.budget.gpu_memory)
        training = estimate(recipe, on="cuda")
        assert 0.5 * allowed < training.peak_bytes <= (1 - FRAGMENTATION) * allowed
        assert largest(stages_of(recipe, training, "cuda")).peak_bytes <= (1 - FRAGMENTATION) * allowed
    else:
        assert estimate(recipe).peak_bytes <= parse_size(recipe.budget.memory)
        stages = stages_of(recipe, estimate(recipe, on="cpu"), "cpu")
        assert largest(stages).peak_bytes <= parse_size(recipe.budget.memory)


def stages_of(recipe, training, kind):
    """The stages of a recipe: its rows as long as a card's recipe allows, else of 128 tokens; answers a quarter."""
    length = recipe.data.max_seq_len if kind == "cuda" else 128
    counts = {"rows": 200, "tokens": 200 * length, "trained_tokens": 50 * length, "longest": length}
    facts = find_facts(recipe, training, {"train": counts}, kind=kind, bundle=expect_on_device(recipe))
    return plan_stages(facts)


def test_there_is_a_recipe_for_each_common_card():
    cards = {parse_size(load_recipe(path).budget.gpu_memory) for path in RECIPES}
    assert {gib * 1024**3 for gib in (4, 6, 8, 12, 24)} <= cards


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_folder_reads_and_states_a_budget(path):
    recipe = load_recipe(path)
    assert recipe.budget.memory or recipe.budget.gpu_memory
    assert len(path.read_text().splitlines()) <= 40
