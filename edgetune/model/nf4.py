"""The NF4 grid as training sees it: bitsandbytes' own quantiser, 64 weights a block.

Used by `load_base` (through transformers) and by the merge, which must put weights on the very same grid.
Source: QLoRA, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgetune.model.quiet import silence_bitsandbytes

BLOCK_SIZE = 64


def as_trained(weight: Tensor, *, double_quantization: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight that a 4-bit layer multiplies with: quantised to NF4 in `dtype` and brought back.

    weight (out, in), any float type -> (out, in) in `dtype`, on the CPU. Equal, bit for bit, to what the layer
    loaded by `load_base` on the same kind of device dequantises to.
    """
    silence_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight.to(device, dtype), blocksize=BLOCK_SIZE, compress_statistics=double_quantization, quant_type="nf4"
    )
    return dequantize_4bit(codes, state).cpu()


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linears that `load_base` holds in NF4: all but the output head, by module path. Works on the meta device."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def hold_layout(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking themselves at the first evaluation on a CPU.

    bitsandbytes 0.50 packs the weights of a layer in eval mode for AVX512-BF16, with scales cut to bfloat16, never
    unpacks them, and its packed product has no gradient: training after an evaluation would silently lose the base's
    part of every gradient, and what is evaluated would not be what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
