"""One step for a linear and its LoRA branch: y = x W^T + scaling * dropout(x) A^T B^T, with the base from NF4.

PEFT computes the same in about twelve passes over the activations (casts, a defensive copy, a scaled copy, a sum).
Here the branch is added into the base's product in place, and what the backward pass needs stays in the compute type.
Source: LoRA, arXiv:2106.09685, section 4.1; the weight gradients are those of its equation 3.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor


def fuse(model: Any) -> int:
    """Give every plain LoRA linear of a PeftModel the fused step; how many there are.

    Left to PEFT: DoRA and other variants, several adapters at once, adapted embeddings, quantisations but NF4.
    """
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In eval mode on AVX512-BF16 bitsandbytes repacks the weights in place, for good, into a layout that has no
            # backward pass and scales in bfloat16; a model that is evaluated while it trains must not do that.
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, LoraLayer) and _is_plain(module):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]
            count += 1
    return count


def _is_plain(module: Any) -> bool:
    from bitsandbytes.nn import Linear4bit

    base = module.get_base_layer()
    names = module.active_adapters
    return (
        type(base) in (torch.nn.Linear, Linear4bit)
        and len(names) == 1
        and names[0] in module.lora_A
        and names[0] not in module.lora_variant
        and not module.merged
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
        and not base.weight.requires_grad
    )


def _forward(module: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """x (..., in) -> (..., out) in the compute type."""
    base = module.get_base_layer()
    name = module.active_adapters[0]
    is_autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if is_autocast else x.dtype
    dropout = module.lora_dropout[name]
    rate = dropout.p if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return _LoraLinear.apply(x.to(dtype), a, b, base, module.scaling[name], rate)


def frozen_weight(base: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of a plain or NF4 linear in `dtype`."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    absmax = state.absmax
    if state.nested:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
        )
        absmax = absmax + state.offset
    return torch.ops.bitsandbytes.dequantize_4bit(
        base.weight.data, absmax, state.blocksize, state.quant_type, state.shape, dtype
    )


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: Any, scaling: float, rate: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        dtype = rows.dtype
        weight = frozen_weight(base, dtype)
        low_a, low_b = a.to(dtype), b.to(dtype)
        kept, share = _draw(rows, rate) if rate else (None, 1.0)
        scale = scaling / share
        inner = _masked(rows, kept) @ low_a.t()
        y = rows @ weight.t() if base.bias is None else torch.addmm(base.bias.to(dtype), rows, weight.t())
        y.addmm_(inner, low_b.t(), alpha=scale)
        ctx.save_for_backward(rows, kept, inner, low_a, low_b)
        ctx.base, ctx.scale = base, scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, kept, inner, low_a, low_b = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].reshape(-1, shape[-1])
        grad_b = torch.mm(gradient.t(), inner).float().mul_(ctx.scale)
        grad_inner = torch.mm(gradient, low_b).mul_(ctx.scale)
        grad_a = torch.mm(grad_inner.t(), _masked(rows, kept)).float()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ frozen_weight(ctx.base, gradient.dtype)
            if kept is None:
                grad_x.addmm_(grad_inner, low_a)
            else:
                grad_x += _masked(torch.mm(grad_inner, low_a), kept)
            grad_x = grad_x.view(*shape[:-1], -1)
        return grad_x, grad_a, grad_b, None, None, None


def _draw(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which elements dropout keeps, bool in the shape of `like`, and the share that is kept on average.

    On a CPU torch draws a whole random number an element; here one 64-bit draw serves four, so that the share is exact
    to 1/65536. Measured for 1024 x 704 in bfloat16: 1.1 ms with the masking, torch's dropout 4.7 ms.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.bool).bernoulli_(1.0 - rate), 1.0 - rate
    dropped = min(round(rate * 65536), 65535)
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), 2**63 - 1).view(torch.int16)
    return (draws[: like.numel()] >= dropped - 32768).view(like.shape), 1.0 - dropped / 65536


def _masked(x: Tensor, kept: Tensor | None) -> Tensor:
    """x where kept, else zero; None keeps all. On a CPU by its bits, several times faster than by its values."""
    if kept is None:
        return x
    if x.device.type != "cpu" or not x.is_contiguous():
        return x * kept
    bits = torch.int16 if x.itemsize == 2 else torch.int32
    return (x.view(bits) & kept.view(torch.int8).to(bits).neg_()).view(x.dtype)
