"""What the loop computes on an NVIDIA GPU alone: FlashAttention, bitsandbytes' kernels called directly, Liger's."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import attention_error, make_batch, recipe_for
from edgetune.errors import EdgeTuneError
from edgetune.lora.adapter import attach
from edgetune.model import nf4
from edgetune.model.base import load_base
from edgetune.model.device import autocast
from edgetune.recipe import LoraTable, ModelTable
from edgetune.train.fused import frozen_weight, fuse
from edgetune.train.liger import check_liger, liger_kernels
from edgetune.train.loss import loss_sum, use_segments

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


def adapted(dtype: str):
    torch.manual_seed(0)
    model = attach(load_base(ModelTable("edgetune:nano", compute_dtype=dtype), device=GPU), LoraTable(r=8)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    fuse(model)
    use_segments(model)
    return model


def loss_and_gradients(model):
    batch = make_batch(recipe_for("x", batch=4, tokens=128), 4096).to(GPU)
    model.zero_grad()
    with autocast(model):
        loss, count = loss_sum(model, batch)
    (loss / count).backward()
    return float(loss.detach()) / count, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_flash_attention_inside_packed_samples_is_attention_of_each_sample_alone():
    found = attention_error(GPU)
    assert found["is_flash"]
    assert max(found["causal"], found["windowed"]) < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_dequantised_by_the_kernels_are_those_of_bitsandbytes_own_operators(dtype, monkeypatch):
    model = load_base(ModelTable("edgetune:nano"), device=GPU)
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert nf4._kernels(dtype, "nf4") is not None
    found = [frozen_weight(layer, dtype) for layer in layers]
    monkeypatch.setattr(nf4, "_kernels", lambda *_: None)
    assert all(torch.equal(weight, frozen_weight(layer, dtype)) for weight, layer in zip(found, layers, strict=True))


def test_losses_and_gradients_with_liger_are_those_without():
    model = adapted("bfloat16")
    try:
        check_liger(True, model.get_base_model().config.model_type)
    except EdgeTuneError as error:
        pytest.skip(str(error))
    loss, gradients = loss_and_gradients(model)
    with liger_kernels(model, True):
        found_loss, found = loss_and_gradients(model)
    assert found_loss == pytest.approx(loss, rel=2e-3)
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), name  # bfloat16, other places of rounding
