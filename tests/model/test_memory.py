from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from edgetune.errors import ModelError
from edgetune.lora.adapter import attach
from edgetune.model.base import load_base
from edgetune.model.classifier import Classifier, ClassifierSpec
from edgetune.model.device import compute_dtype, device, has_bfloat16
from edgetune.model.memory import estimate, nf4_bytes, peak_memory_bytes, reset_peak
from edgetune.recipe import DataTable, LoraTable, ModelTable, Recipe, TrainTable

MIB = 1024**2


def recipe_of(base: Path, **options: Any) -> Recipe:
    """A recipe with any keys of [model], [data], [lora] and [train]."""

    def pick(kind: type, **given: Any) -> Any:
        names = {item.name for item in dataclasses.fields(kind)}
        return kind(**given, **{name: value for name, value in options.items() if name in names})

    return Recipe(pick(ModelTable, base=str(base)), pick(DataTable, train="x"), pick(LoraTable), pick(TrainTable))


@pytest.mark.parametrize(
    "lora", [{"r": 4}, {"r": 5, "use_dora": True}, {"r": 8, "target_modules": ("q_proj", "mlp.down_proj")}]
)
def test_parameters_are_counted_as_the_real_model_has_them(tiny_base: Path, lora: dict[str, Any]) -> None:
    recipe = recipe_of(tiny_base, quantization="none", **lora)
    base = load_base(recipe.model)
    planned = estimate(recipe)
    assert planned.base_parameters == sum(parameter.numel() for parameter in base.parameters())
    model = attach(base, recipe.lora)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert planned.trainable_parameters == trainable


@pytest.mark.parametrize("double", [True, False])
def test_the_estimated_bytes_of_nf4_are_those_of_the_live_layers(tiny_base: Path, double: bool) -> None:
    model = load_base(ModelTable(str(tiny_base), double_quantization=double))
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    states = [layer.weight.quant_state for layer in layers]
    live = sum(layer.weight.numel() + state.absmax.nbytes for layer, state in zip(layers, states, strict=True))
    live += sum(state.state2.absmax.nbytes for state in states if state.nested)
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert live / weights == pytest.approx(nf4_bytes(double), rel=1e-3)


def test_an_estimate_touches_no_weights(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    assert estimate(recipe_of(tmp_path)).peak_bytes > 0


def test_parts_add_up_and_follow_the_recipe(tiny_base: Path) -> None:
    def parts(**options: Any) -> dict[str, int]:
        planned = estimate(recipe_of(tiny_base, **options))
        assert sum(planned.parts.values()) == planned.peak_bytes
        assert max(planned.other.values()) <= max(planned.parts.get(name, 0) for name in ("largest block", "logits"))
        return planned.parts | planned.other

    plain = parts()
    assert parts(r=32)["adapter"] == 2 * plain["adapter"]
    assert parts(optimizer="adamw_8bit")["optimizer"] == plain["optimizer"] // 4
    assert parts(batch_size=8)["saved activations"] == 2 * plain["saved activations"]
    assert parts(dropout=0.1)["saved activations"] > plain["saved activations"]
    checkpointed = parts(gradient_checkpointing=True)
    assert checkpointed["saved activations"] < plain["saved activations"]
    assert checkpointed["largest block"] > plain["largest block"]
    assert parts(fused_loss=False)["logits"] > 1.5 * plain["logits"]
    assert parts(quantization="none")["base, linears"] > 3 * plain["base, linears"]
    assert parts(compute_dtype="float32")["base, the rest"] >= plain["base, the rest"]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_embeddings_are_counted_as_the_live_ones(tiny_base: Path, kind: Any) -> None:
    model = load_base(ModelTable(str(tiny_base), embedding_quantization=kind))
    live = {buffer.data_ptr(): buffer.nbytes for buffer in model.get_output_embeddings().vectors.buffers()}
    planned, plain = (estimate(recipe_of(tiny_base, embedding_quantization=how)) for how in (kind, "none"))
    assert planned.parts["base, embeddings"] == sum(live.values()) < plain.parts["base, embeddings"]
    assert planned.base_parameters == plain.base_parameters


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_the_head_of_a_classifier_is_counted_as_the_real_one(tiny_encoder: Path, head: Any) -> None:
    recipe = recipe_of(tiny_encoder, task="classification", quantization="none").with_classify(head=head)
    count = 10_000
    without, planned = estimate(recipe), estimate(recipe, labels=count)
    spec = ClassifierSpec(tuple(map(str, range(count))), "mean", head, 20.0, False, 64)
    weights = sum(item.numel() for item in Classifier(load_base(recipe.model), spec).head.parameters())
    assert planned.trainable_parameters - without.trainable_parameters == weights
    assert planned.parts["head"] == 4 * weights
    assert planned.parts["gradients"] - without.parts["gradients"] == 4 * weights
    assert planned.parts["optimizer"] - without.parts["optimizer"] == 8 * weights
    assert (planned.parts | planned.other)["logits"] >= recipe.train.batch_size * count * 4 * 4


def test_only_trained_tokens_have_logits(tiny_base: Path) -> None:
    def logits(share: float, **options: Any) -> int:
        planned = estimate(recipe_of(tiny_base, fused_loss=False, **options), trained_share=share)
        return (planned.parts | planned.other)["logits"]

    assert logits(0.25) == logits(1.0) // 4
    assert logits(0.25, loss_on="all") == logits(1.0)


def test_a_gpu_that_is_not_here_can_be_planned_for(tiny_base: Path) -> None:
    recipe = recipe_of(tiny_base, gradient_checkpointing=True)
    on_gpu = estimate(recipe, on="cuda")
    assert "CUDA context" in on_gpu.parts
    offloaded = estimate(recipe_of(tiny_base, gradient_checkpointing=True, offload_activations=True), on="cuda")
    layers = AutoConfig.from_pretrained(tiny_base).num_hidden_layers
    tokens, hidden = 4 * recipe.data.max_seq_len, AutoConfig.from_pretrained(tiny_base).hidden_size
    saved = on_gpu.parts["saved activations"] - offloaded.parts["saved activations"]
    assert saved == (layers - 2) * tokens * hidden * 2


def test_a_config_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(ModelError, match="no model can be made"):
        estimate(recipe_of(tmp_path))


def test_the_peak_is_seen_and_can_be_reset() -> None:
    if torch.cuda.is_available():
        pytest.skip("the CUDA counter sees tensors on the device only")
    reset_peak()
    before = peak_memory_bytes()
    block = mmap.mmap(-1, 64 * MIB)  # not a tensor: a heap with room for it would keep its pages
    for _ in range(64):
        block.write(b"1" * MIB)
    high = peak_memory_bytes()
    assert high - before > 50 * MIB
    block.close()
    assert peak_memory_bytes() > high - MIB  # Linux counts pages in batches per thread
    reset_peak()
    assert peak_memory_bytes() < high - 50 * MIB


def test_compute_dtype_is_what_was_asked_for_or_what_the_hardware_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("float16", cpu) == torch.float16
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if has_bfloat16(cpu) else torch.float32)
    assert not has_bfloat16(torch.device("meta"))
    assert device().type in ("cpu", "cuda")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert compute_dtype("auto", cpu) == torch.float32
