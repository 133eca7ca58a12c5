"""Gradient checkpoints in host memory: what a layer's recomputation starts from leaves the GPU while it waits.

On the way forward the input of each layer is copied to pinned host memory, behind the layer's own work on the same
stream; on the way back it is fetched and the layer computed again. The GPU then holds the inputs of one or two layers
instead of all. Source: Chen et al. 2016, arXiv:1604.06174, for the checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def offload_checkpoints(model: Any) -> int:
    """Let every layer that checkpoints keep its input in host memory; how many there are."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    layers = [layer for layer in layers if layer.gradient_checkpointing]
    for layer in layers:
        layer._gradient_checkpointing_func = offloaded
    return len(layers)


def offloaded(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), to be computed again on the way back from inputs that wait in host memory."""
    with saved_tensors_hooks(_to_host, _to_device):
        return checkpoint(function, *inputs, use_reentrant=True)  # this kind passes its inputs through the hooks


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    is_on_gpu = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_on_gpu)
    return tensor.device, host.copy_(tensor, non_blocking=is_on_gpu)


def _to_device(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, host = packed
    return host.to(device, non_blocking=True)
