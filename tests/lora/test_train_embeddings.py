"""lora.train_embeddings: embedding and head trained whole, in PEFT's own format, from attach to the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetune.errors import RecipeError
from edgetune.lora.adapter import attach, load, save
from edgetune.lora.merge import merge
from edgetune.model.base import load_base, load_merged
from edgetune.recipe import LoraTable, ModelTable, parse_recipe


def _table(base: Path) -> ModelTable:
    return ModelTable(base=str(base), quantization="none", compute_dtype="float32")


def _trained(base: Path) -> Any:
    """An adapted base whose trained weights have all moved."""
    torch.manual_seed(0)
    model = attach(load_base(_table(base)), LoraTable(r=4, train_embeddings=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 40)[None]).logits


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, and one whose head is a tensor of its own."""
    if request.param == "tied":
        return tiny_base
    import shutil

    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_base, tmp_path / "untied")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 0.1)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def test_what_was_trained_is_saved_loaded_and_merged(base: Path, tmp_path: Path) -> None:
    model = _trained(base)
    save(model, tmp_path / "adapter", _table(base))
    expected = _logits(model)
    assert not torch.allclose(expected, _logits(load_base(_table(base))), atol=0.1)
    torch.testing.assert_close(_logits(load(load_base(_table(base)), tmp_path / "adapter")), expected)
    merge(tmp_path / "adapter", base, tmp_path / "merged")
    torch.testing.assert_close(_logits(load_merged(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT reads what transformers is about to rename
def test_plain_peft_loads_it(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = _trained(base)
    save(model, tmp_path / "adapter", _table(base))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(_logits(plain), _logits(model))


def test_a_tied_embedding_stays_one_tensor(tiny_base: Path, tmp_path: Path) -> None:
    model = _trained(tiny_base)
    causal_lm = model.get_base_model()
    assert causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight
    save(model, tmp_path / "adapter", _table(tiny_base))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["ensure_weight_tying"] is True
    merge(tmp_path / "adapter", tiny_base, tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged/model.safetensors")


def test_training_goes_on_from_such_an_adapter(tiny_base: Path, tmp_path: Path) -> None:
    model = _trained(tiny_base)
    save(model, tmp_path / "adapter", _table(tiny_base))
    again = attach(load_base(_table(tiny_base)), LoraTable(init_from=str(tmp_path / "adapter")))
    trained = {name: value for name, value in again.named_parameters() if value.requires_grad}
    embedding = next(value for name, value in trained.items() if "embed_tokens" in name)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, model.get_base_model().get_input_embeddings().weight)


def test_classifiers_leave_it_out() -> None:
    text = '[model]\nbase = "x"\ntask = "classification"\n[data]\ntrain = "y"\n[lora]\ntrain_embeddings = true\n'
    with pytest.raises(RecipeError, match=r"lora\.train_embeddings"):
        parse_recipe(text, source="r.toml")
