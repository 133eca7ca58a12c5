"""Modules that become onnxruntime's own operators when torch exports them: weights on the grid, attention in one node.

They can be exported only: torch has no kernels for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgetune.quantize.grid import QuantizedMatrix

ATTENTION = "edgetune_onnx"
"""The name of `fused_attention` among transformers' attention functions."""


class GridLinear(nn.Module):
    """A linear layer as MatMulNBits; what it adds to the product stays float."""

    def __init__(self, matrix: QuantizedMatrix, bias: Tensor | None, accuracy_level: int) -> None:
        super().__init__()
        _hold(self, matrix, matrix.packed)
        self.bias = bias
        self._settings = {
            "N": len(matrix.packed),
            "K": matrix.in_features,
            "bits": matrix.bits,
            "block_size": matrix.block_size,
            "accuracy_level": accuracy_level,
        }

    def forward(self, states: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        shape = (*states.shape[:-1], self._settings["N"])
        inputs = (states, self.packed, self.scales, self.zero_points)
        product = _operator("MatMulNBits", inputs, self._settings, states.dtype, shape)
        return product if self.bias is None else product + self.bias


class GridEmbedding(nn.Module):
    """An embedding as GatherBlockQuantized."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        super().__init__()
        _hold(self, matrix, matrix.packed.flatten(1))
        self._columns = matrix.in_features
        self._settings = {
            "gather_axis": 0,
            "quantize_axis": 1,
            "bits": matrix.bits,
            "block_size": matrix.block_size,
        }

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., columns); the operator gives the last block's padding too, which is cut off."""
        shape = (*ids.shape, self.scales.shape[1] * self._settings["block_size"])
        inputs = (self.packed, ids, self.scales, self.zero_points)
        rows = _operator("GatherBlockQuantized", inputs, self._settings, self.scales.dtype, shape)
        return rows if shape[-1] == self._columns else rows[..., : self._columns]

    @property
    def weight(self) -> Tensor:
        """All rows: DeBERTa takes those of its relative positions at once."""
        return self(torch.arange(len(self.packed)))


def fused_attention(
    module: nn.Module,  # noqa: ARG001  transformers calls it by position
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """MultiHeadAttention: (B, heads, T, width) thrice, additive mask (B, 1, T, T) -> (B, T, heads, width), None."""
    batch, heads, length, width = query.shape
    states = [item.transpose(1, 2).reshape(batch, length, heads * width) for item in (query, key, value)]
    settings = {"num_heads": heads, "scale": float(scaling or width**-0.5)}
    inputs = (*states, None, None, attention_mask)
    mixed = _operator("MultiHeadAttention", inputs, settings, query.dtype, states[0].shape)
    return mixed.view(batch, length, heads, width), None


def register_attention() -> None:
    """Make `fused_attention` known to transformers as ATTENTION, with masks that are added to the scores."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def mask(**settings: Any) -> Tensor:
        return eager_mask(**{**settings, "allow_is_bidirectional_skip": False})  # no mask fits the example alone

    AttentionInterface.register(ATTENTION, fused_attention)
    AttentionMaskInterface.register(ATTENTION, mask)


def _hold(module: nn.Module, matrix: QuantizedMatrix, packed: Tensor) -> None:
    """Register a matrix's bytes; the graph's tensors get their names."""
    module.register_buffer("packed", packed)
    module.register_buffer("scales", matrix.scales)
    module.register_buffer("zero_points", matrix.zero_points)


def _operator(name: str, inputs: Any, settings: dict[str, Any], dtype: torch.dtype, shape: Any) -> Any:
    """The output of an operator of com.microsoft, of which torch needs to know type and shape only."""
    symbolic = torch.onnx.ops.symbolic
    return symbolic(f"com.microsoft::{name}", inputs, settings, dtype=dtype, shape=shape, version=1)
