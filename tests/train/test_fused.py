"""The fused LoRA step against PEFT's own forward and backward."""

from __future__ import annotations

import pytest
import torch

from edgetune.lora.adapter import attach
from edgetune.model.base import load_base
from edgetune.recipe import LoraTable, ModelTable
from edgetune.train.fused import draw_kept, frozen_weight, fuse, masked


def adapted(base, *, quantization="nf4", dtype="float32", **lora):
    torch.manual_seed(0)
    model = attach(
        load_base(ModelTable(base=str(base), quantization=quantization, compute_dtype=dtype)), LoraTable(**lora)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def loss_and_gradients(model, seed=3):
    ids = torch.randint(5, 500, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_loss_and_gradients_are_those_of_peft(tiny_base, quantization, use_rslora):
    model = adapted(tiny_base, quantization=quantization, use_rslora=use_rslora)
    expected = loss_and_gradients(model)
    assert fuse(model) == 14
    found = loss_and_gradients(model)
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # float32, other order of sums


def test_in_bfloat16_it_stays_within_the_rounding_of_the_type(tiny_base):
    model = adapted(tiny_base, dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model)
        fuse(model)
        found = loss_and_gradients(model)
    assert found[0] == pytest.approx(float(expected[0]), rel=2e-3)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_the_gradient_through_dropout_is_the_slope_of_the_loss(tiny_base):
    model = adapted(tiny_base, dropout=0.3)
    fuse(model)
    _, gradients = loss_and_gradients(model, seed=7)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "layers.0" in n and "lora_A" in n)
    direction = gradients[name] / gradients[name].norm()
    slopes = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * 1e-2 * direction
        slopes.append(loss_and_gradients(model, seed=7)[0])  # the same seed, the same dropout
        with torch.no_grad():
            parameter -= sign * 1e-2 * direction
    slope = float(slopes[0] - slopes[1]) / 2e-2
    assert slope == pytest.approx(float(gradients[name].norm()), rel=0.02)


def test_dora_is_left_to_peft(tiny_base):
    model = adapted(tiny_base, use_dora=True)
    assert fuse(model) == 0


def test_no_dropout_in_eval_mode_and_no_repacking_of_the_weights(tiny_base):
    model = adapted(tiny_base, dropout=0.5, dtype="bfloat16")
    fuse(model)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        first, second = (model.eval()(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states if state is not None)


@pytest.mark.parametrize("double", [True, False])
def test_the_weight_is_what_bitsandbytes_dequantises(tiny_base, double):
    import bitsandbytes.functional as bnb

    model = load_base(ModelTable(base=str(tiny_base), double_quantization=double, compute_dtype="float32"))
    linear = model.model.layers[1].mlp.down_proj
    expected = bnb.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    assert torch.equal(frozen_weight(linear, torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_only_that(dtype):
    torch.manual_seed(0)
    x = torch.randn(501, 333).to(dtype)
    kept, share = draw_kept(x.shape, 0.3, x.device)
    assert share == pytest.approx(0.7, abs=1e-5)
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.005)  # 4 standard deviations
    assert torch.equal(masked(x, kept), x * kept)
    again, _ = draw_kept(x.shape, 0.3, x.device)
    assert not torch.equal(kept, again)
