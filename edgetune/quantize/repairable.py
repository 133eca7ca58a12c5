"""Repair: the integers stay as they were rounded; their scales, the norms and the biases are trained.

In the flow: matrices on the grid -> `make_repairable` puts them into the torch model -> repair.py trains what is
left open -> `repaired` takes out matrices and vectors, which the bundle holds byte for byte. No weight is added, so the
device pays nothing. Source: PEQA, arXiv:2305.14152; EfficientQAT's second phase, arXiv:2407.11062, section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgetune.quantize.grid import QuantizedMatrix, dequantize, unpack
from edgetune.quantize.scales import storable


class RepairableLinear(nn.Module):
    """A linear layer on the grid, x (..., K) -> (..., N); each scale is what it was, times 1 + its `change`.

    The integers are held in the bytes of the grid, 4 bits a weight, and brought back for each product. With
    `rounds_inputs`, inputs are rounded to int8 as MatMulNBits does at accuracy level 4; gradients pass through.
    """

    def __init__(self, matrix: QuantizedMatrix, bias: nn.Parameter | None, *, rounds_inputs: bool) -> None:
        super().__init__()
        rows, blocks, _ = matrix.packed.shape
        self.matrix, self.rounds_inputs = matrix, rounds_inputs
        self.register_buffer("packed", matrix.packed)
        self.register_buffer("scales", matrix.scales)
        zeros = torch.full((rows, blocks), 2 ** (matrix.bits - 1), dtype=torch.uint8)
        if matrix.zero_points is not None:
            zeros = unpack(matrix.zero_points, matrix.bits, blocks)
        self.register_buffer("zeros", zeros)
        self.change = nn.Parameter(torch.zeros_like(matrix.scales))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        scales = self.scales * (1 + self.change)
        scales = scales + (storable(scales) - scales).detach()
        y = _GridProduct.apply(x, scales, self.packed, self.zeros, self.matrix, self.rounds_inputs)
        return y if self.bias is None else y + self.bias

    def repaired(self) -> QuantizedMatrix:
        """The matrix with the scales as they are now."""
        scales = storable((self.scales * (1 + self.change.detach())).cpu())
        return dataclasses.replace(self.matrix, scales=scales)


class _GridProduct(torch.autograd.Function):
    """x W^T for a W on the grid, x rounded before where `rounds_inputs`; gradients pass through the rounding.

    What is kept for the way back is x, which layers of one input share, and the packed integers: never W, or x rounded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scales: Tensor,
        packed: Tensor,
        zeros: Tensor,
        matrix: QuantizedMatrix,
        rounds_inputs: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, scales, packed, zeros)
        ctx.matrix, ctx.rounds_inputs = matrix, rounds_inputs
        weight = _levels(packed, zeros, matrix) * scales.unsqueeze(-1)
        seen = rounded_inputs(x, matrix.block_size) if rounds_inputs else x
        return F.linear(seen, _cut(weight, matrix).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, scales, packed, zeros = ctx.saved_tensors
        seen = rounded_inputs(x, ctx.matrix.block_size) if ctx.rounds_inputs else x
        levels = _levels(packed, zeros, ctx.matrix)
        weight = _cut(levels * scales.unsqueeze(-1), ctx.matrix).to(gradient.dtype)
        towards_x = gradient @ weight if ctx.needs_input_grad[0] else None
        rows = gradient.reshape(-1, gradient.shape[-1])
        towards_weight = (rows.T @ seen.reshape(-1, seen.shape[-1]).to(rows.dtype)).float()
        padding = levels.shape[1] * levels.shape[2] - towards_weight.shape[1]
        blocks = F.pad(towards_weight, (0, padding)).view_as(levels)
        return towards_x, torch.linalg.vecdot(blocks, levels), None, None, None, None


def _levels(packed: Tensor, zeros: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """Codes less their zero points, float32 (N, blocks, block_size)."""
    return unpack(packed, matrix.bits, matrix.block_size).float().sub_(zeros.unsqueeze(-1))


def _cut(blocks: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """(N, blocks, block_size) -> (N, K), without the padding of the last block."""
    return blocks.flatten(1)[:, : matrix.in_features]


def round_inputs(x: Tensor, block_size: int) -> Tensor:
    """x (..., K) as the kernels of accuracy level 4 see it: int8 with one scale, absmax / 127, for each block of K.

    Source: onnxruntime/core/mlas/lib/sqnbitgemm_kernel_avx_common.h, QuantizeARow.
    """
    padding = -x.shape[-1] % block_size
    blocks = F.pad(x, (0, padding)).unflatten(-1, (-1, block_size))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / scales.clamp_min(torch.finfo(x.dtype).tiny)).round_().mul_(scales)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def rounded_inputs(x: Tensor, block_size: int) -> Tensor:
    """`round_inputs` with a gradient: that of x itself, as if nothing were rounded (arXiv:1308.3432)."""
    return x + (round_inputs(x.detach(), block_size) - x).detach()


def round_inputs_of(module: nn.Module, block_size: int) -> None:
    """Let a module round its input as the kernels of accuracy level 4 do: for a head, which keeps its float weight."""
    module.register_forward_pre_hook(lambda _, inputs: (rounded_inputs(inputs[0], block_size), *inputs[1:]))


def make_repairable(model: nn.Module, matrices: Mapping[str, QuantizedMatrix], *, rounds_inputs: bool) -> None:
    """Replace, in place, each nn.Linear whose weight `matrices` holds by name, and free all vectors for training.

    Other modules with a weight in `matrices` (embeddings, a tied head) hold the grid's numbers, frozen; with
    `rounds_inputs` the head rounds its inputs too.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # a classifier has none
    for name, matrix in matrices.items():
        path = name.removesuffix(".weight")
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(path, RepairableLinear(matrix, module.bias, rounds_inputs=rounds_inputs))
        else:
            module.weight = nn.Parameter(dequantize(matrix), requires_grad=False)
    if rounds_inputs and matrices and head is not None:
        round_inputs_of(head, next(iter(matrices.values())).block_size)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.requires_grad_(True)
    for layer in repairable_layers(model).values():
        layer.change.requires_grad_(True)


def checkpoint_layers(model: nn.Module) -> None:
    """Let each layer of a decoder keep its input alone, and be computed again on the way back: the same numbers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            layer.training = True  # its own flag, which it asks; the modules in it stay in eval mode and drop nothing


def repairable_layers(model: nn.Module) -> dict[str, RepairableLinear]:
    """The layers that make_repairable put in, by the name of their weight."""
    return {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, RepairableLinear)}


def repaired(model: nn.Module) -> tuple[dict[str, QuantizedMatrix], dict[str, Tensor]]:
    """Copies of what a model holds after repair: the matrices, and all vectors float32, each by its tensor's name."""
    matrices = {name: layer.repaired() for name, layer in repairable_layers(model).items()}
    vectors = {name: value.detach() for name, value in model.named_parameters() if value.dim() == 1}
    return matrices, {name: value.to("cpu", torch.float32, copy=True) for name, value in vectors.items()}
