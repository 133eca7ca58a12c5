"""The NF4 grid as training sees it: bitsandbytes' own quantiser, 64 weights a block.

Used by `load_base` (through transformers) and by the merge, which must put weights on the very same grid.
Source: QLoRA, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.model.quiet import load_bitsandbytes

BLOCK_SIZE = 64
MOST_UNPACKED_BYTES = 1 << 30
"""What `hold_unpacked` may take: a base of up to 500 million weights in bfloat16."""


def as_trained(weight: Tensor, *, double_quantization: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight that a 4-bit layer multiplies with: quantised to NF4 in `dtype` and brought back.

    weight (out, in), any float type -> (out, in) in `dtype`, on the CPU. Equal, bit for bit, to what the layer
    loaded by `load_base` on the same kind of device dequantises to.
    """
    load_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight.to(device, dtype), blocksize=BLOCK_SIZE, compress_statistics=double_quantization, quant_type="nf4"
    )
    return dequantize_4bit(codes, state).cpu()


def dequantize(codes: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in `dtype` of a 4-bit layer's packed codes and its bitsandbytes QuantState."""
    kernels = _kernels(dtype, state.quant_type)
    if kernels is not None and codes.device.type == "cuda" and torch.cuda.current_device() == codes.device.index:
        return _by_kernels(codes, state, dtype, *kernels)
    absmax = state.absmax
    if state.nested:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
        )
        absmax = absmax + state.offset
    return torch.ops.bitsandbytes.dequantize_4bit(codes, absmax, state.blocksize, state.quant_type, state.shape, dtype)


@cache
def _kernels(dtype: torch.dtype, quant_type: str) -> tuple[Callable[..., None], Callable[..., None]] | None:
    """bitsandbytes' CUDA functions for scales and codes, where its library has them and says what they take."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    from bitsandbytes.cextension import lib

    try:
        found = lib.cdequantize_blockwise_fp32, getattr(lib, f"cdequantize_blockwise_{name}_{quant_type}")
    except (AttributeError, RuntimeError):
        return None
    # Without declared types a pointer would pass as a C int, as in versions before 0.50.
    return found if all(function.argtypes and len(function.argtypes) == 7 for function in found) else None


def _by_kernels(
    codes: Tensor, state: Any, dtype: torch.dtype, of_scales: Callable[..., None], of_codes: Callable[..., None]
) -> Tensor:
    """Unpack without torch's dispatcher, for a step on a fast GPU waits for Python more than for the GPU."""
    stream = torch._C._cuda_getCurrentRawStream(codes.device.index)
    absmax, second = state.absmax, state.state2
    if state.nested:
        codes_of_scales, absmax = absmax, torch.empty(absmax.shape, dtype=torch.float32, device=codes.device)
        pointers = (t.data_ptr() for t in (second.code, codes_of_scales, second.absmax, absmax))
        of_scales(*pointers, second.blocksize, absmax.numel(), stream)
        absmax += state.offset
    weight = torch.empty(state.shape, dtype=dtype, device=codes.device)
    of_codes(*(None, codes.data_ptr(), absmax.data_ptr(), weight.data_ptr(), state.blocksize, weight.numel(), stream))
    return weight


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linears that `load_base` holds in NF4: all but the output head, by module path. Works on the meta device."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def hold_unpacked(model: nn.Module, *, most_bytes: int = MOST_UNPACKED_BYTES) -> bool:
    """Replace, in place, a model's 4-bit layers on a CPU by plain ones with the weights that they multiply with.

    For many answers: a 4-bit layer brings its weight back at each call, which for a token of a small model is most of
    the work. The numbers stay the same. Whether it was done: not on a GPU, and not where the weights would take more
    than `most_bytes`.
    """
    layers = {name: module for name, module in model.named_modules() if _is_packed(module)}
    size_bytes = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers.values())
    if size_bytes > most_bytes or any(layer.weight.device.type != "cpu" for layer in layers.values()):
        return False
    for name, layer in layers.items():
        model.set_submodule(name, UnpackedLinear(layer))
    return bool(layers)


class UnpackedLinear(nn.Module):
    """A 4-bit layer for inference that holds the weight, in the type it computes in, which it would bring back."""

    def __init__(self, layer: Any) -> None:
        from bitsandbytes.functional import dequantize_4bit

        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(layer.compute_dtype), False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out) in x's type, as bitsandbytes' Linear4bit does it."""
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def _is_packed(module: nn.Module) -> Any:
    """Whether a module is a 4-bit layer that knows the type it computes in."""
    return getattr(module, "compute_dtype", None) is not None and hasattr(module.weight, "quant_state")


def hold_layout(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking themselves at the first evaluation on a CPU.

    bitsandbytes 0.50 packs the weights of a layer in eval mode for AVX512-BF16, with scales cut to bfloat16, never
    unpacks them, and its packed product has no gradient: training after an evaluation would silently lose the base's
    part of every gradient, and what is evaluated would not be what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
