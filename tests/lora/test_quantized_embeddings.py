"""Adapters on a base whose embedding and head are quantised: saved, merged and gone on from as they were trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.errors import ModelError
from edgetune.lora.adapter import attach, load, save
from edgetune.lora.merge import merge
from edgetune.model.base import load_base, load_merged
from edgetune.model.embedding import embedding_as_trained
from edgetune.recipe import LoraTable, ModelTable

KINDS = ("int8", "nf4")


def table_of(base: Path, kind: Any, **options: Any) -> ModelTable:
    return ModelTable(str(base), **{"compute_dtype": "float32", "embedding_quantization": kind, **options})


def adapted(table: ModelTable) -> Any:
    """A live model whose adapter does something."""
    torch.manual_seed(3)
    model = attach(load_base(table), LoraTable(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 40)[None]).logits.float()


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, and one whose head is a tensor of its own."""
    if request.param == "tied":
        return tiny_base
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_base, tmp_path / "untied"))
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_on_the_trained_base_computes_what_was_trained(
    base: Path, tmp_path: Path, kind: Any, quantization: Any
) -> None:
    table = table_of(base, kind, quantization=quantization)
    model = adapted(table)
    save(model, tmp_path / "a", table)
    assert json.loads((tmp_path / "a/edgetune.json").read_text())["embedding_quantization"] == kind
    torch.testing.assert_close(logits(load(load_base(table), tmp_path / "a")), logits(model))
    merge(tmp_path / "a", base, tmp_path / "m")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)
    merge(tmp_path / "a", base, tmp_path / "o", merge_base="original")
    assert (logits(load_merged(tmp_path / "o")) - logits(model)).abs().max() > 1e-2


def test_a_merge_writes_the_values_of_the_compute_type_or_the_files_own(tiny_base: Path, tmp_path: Path) -> None:
    table = table_of(tiny_base, "nf4", compute_dtype="bfloat16")
    save(adapted(table), tmp_path / "a", table)
    original = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"]
    for merge_base, wanted in (
        ("trained", embedding_as_trained(original, "nf4", dtype=torch.bfloat16, device=torch.device("cpu")).float()),
        ("original", original),
    ):
        merge(tmp_path / "a", tiny_base, tmp_path / "m", merge_base=merge_base)  # type: ignore[arg-type]
        assert torch.equal(load_file(tmp_path / "m/model.safetensors")["model.embed_tokens.weight"], wanted)


def test_training_goes_on_from_an_adapter_of_a_plain_base(tiny_base: Path, tmp_path: Path) -> None:
    table = table_of(tiny_base, "none")
    save(adapted(table), tmp_path / "a", table)
    again = attach(load_base(table_of(tiny_base, "int8")), LoraTable(init_from=str(tmp_path / "a")))
    assert sum(parameter.requires_grad for parameter in again.parameters()) == 28


@pytest.mark.parametrize(
    "lora",
    [
        LoraTable(train_embeddings=True),
        LoraTable(target_modules=("q_proj", "lm_head")),
        LoraTable(target_modules=("model.embed_tokens",)),
    ],
)
def test_an_adapter_on_a_quantised_end_is_refused_in_one_line(tiny_base: Path, lora: LoraTable) -> None:
    with pytest.raises(ModelError, match=r"which model\.embedding_quantization freezes; leave") as met:
        attach(load_base(table_of(tiny_base, "int8")), lora)
    assert "\n" not in str(met.value)


def test_an_adapter_that_holds_such_an_end_is_refused(base: Path, tmp_path: Path) -> None:
    table = table_of(base, "none", quantization="none")
    model = attach(load_base(table), LoraTable(r=4, train_embeddings=True))
    save(model, tmp_path / "a", table)
    with pytest.raises(ModelError, match=r"changes model\.embed_tokens, which model\.embedding_quant"):
        attach(load_base(table_of(base, "nf4")), LoraTable(init_from=str(tmp_path / "a")))
