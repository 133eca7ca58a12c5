"""Random decoders small enough to export in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe


@pytest.fixture(scope="session")
def prompts() -> list[list[dict[str, str]]]:
    """What bundles are verified on."""
    return [[{"role": "user", "content": f"turn on lamp {number} in the kitchen"}] for number in range(24)]


@pytest.fixture
def a_recipe() -> Callable[..., Recipe]:
    """A recipe with the given [export] values."""

    def make(**export: object) -> Recipe:
        return Recipe(
            model=ModelTable(base="tiny"),
            data=DataTable(train="rows.jsonl"),
            export=ExportTable(**export),  # type: ignore[arg-type]
            name="tiny",
        )

    return make


@pytest.fixture(scope="session")
def a_decoder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random decoder of an architecture, its other settings given; tokenizer of `tiny_base`."""
    import torch
    import transformers

    def make(kind: str = "Llama", **settings: object) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        values = {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            **settings,
        }
        values["eos_token_id"] = json.loads((tiny_base / "config.json").read_text())["eos_token_id"]
        name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
        torch.manual_seed(0)
        config = getattr(transformers, name)(**values)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one: a mistake with them would not show
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_base / file, folder)
        return folder

    return make
