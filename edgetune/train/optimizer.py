"""Optimizers by the recipe's names: torch's fused AdamW, and bitsandbytes' 8-bit and paged ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from edgetune.errors import HardwareError
from edgetune.recipe import TrainTable

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def make_optimizer(
    model: Any, table: TrainTable, learning_rate: float, *, head_share: float = 1.0
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; weight decay spares biases, norms and magnitudes (1-D).

    A group's "share" is its part of the learning rate: head_share for a head over labels, else 1. Raises HardwareError
    if the model's device has no such optimizer.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: dict[tuple[float, float, bool], list[Any]] = {}
    for name, parameter in trained:
        decay = table.weight_decay if parameter.ndim >= 2 else 0.0
        may_change = table.on_overfitting == "weight_decay" or table.changes is not None
        is_spared = parameter.ndim < 2 and may_change  # apart, for decay may come later
        groups.setdefault((decay, head_share if name.startswith("head.") else 1.0, is_spared), []).append(parameter)
    made = [{"params": part, "weight_decay": decay, "share": share} for (decay, share, _), part in groups.items()]
    where = trained[0][1].device
    check_optimizer(table.optimizer, where.type)
    return OPTIMIZERS[table.optimizer](made, learning_rate, where)


def check_optimizer(name: str, kind: str) -> None:
    """Raises HardwareError if a "cpu" or "cuda" device has no such optimizer."""
    if name.startswith("paged_") and kind != "cuda":
        raise HardwareError(
            "train.optimizer: paged optimizers need CUDA's unified memory; this run is on the CPU",
            cure="use adamw_8bit or adamw",
        )


def _adamw(groups: list[Any], learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
    is_fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, fused=is_fused)


def _bitsandbytes(groups: list[Any], learning_rate: float, _: torch.device, *, name: str) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes (8-bit optimizers, arXiv:2110.02861; paged, QLoRA, arXiv:2305.14314, section 3)."""
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)(groups, lr=learning_rate, betas=BETAS, eps=EPSILON)


OPTIMIZERS: dict[str, Callable[[list[Any], float, torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": partial(_bitsandbytes, name="AdamW8bit"),
    "paged_adamw": partial(_bitsandbytes, name="PagedAdamW32bit"),
    "paged_adamw_8bit": partial(_bitsandbytes, name="PagedAdamW8bit"),
}
