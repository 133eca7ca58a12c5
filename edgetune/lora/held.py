"""How training held the base: each of its tensors in the numbers that the adapter was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.lora.read import Adapter
from edgetune.model.device import compute_dtype, device
from edgetune.model.embedding import Kind, embedding_as_trained, end_modules
from edgetune.model.nf4 import as_trained, quantized_linears


@dataclass(frozen=True)
class Held:
    """How training held the base: in which type (None: as in the file), and which tensors on which grid."""

    dtype: torch.dtype | None
    quantized: frozenset[str] = frozenset()
    """In NF4."""
    is_double: bool = True
    ends: frozenset[str] = frozenset()
    """Embedding and output head, where they were quantised."""
    ends_kind: Kind = "int8"


def held_in_training(adapter: Adapter, model: Any) -> Held:
    """What the record of the adapter says of a base, an empty model of which is given; NF4 and bfloat16 without one."""
    record = adapter.record
    dtype = compute_dtype(record.get("compute_dtype", "bfloat16"), device())
    linears = quantized_linears(model) if record.get("quantization", "nf4") == "nf4" else {}
    ends_kind = record.get("embedding_quantization", "none")
    ends = end_modules(model) if ends_kind != "none" else {}
    return Held(
        dtype,
        frozenset(f"{name}.weight" for name in linears),
        is_double=record.get("double_quantization", True),
        ends=frozenset(f"{name}.weight" for name in ends),
        ends_kind=ends_kind,
    )


def as_held(name: str, weight: Tensor, held: Held) -> Tensor:
    """A tensor of the base in the numbers that training had it in."""
    if held.dtype is None or not weight.is_floating_point():
        return weight
    if name in held.quantized:
        return as_trained(weight, double_quantization=held.is_double, dtype=held.dtype, device=device())
    if name in held.ends:
        return embedding_as_trained(weight, held.ends_kind, dtype=held.dtype, device=device())
    return weight.to(held.dtype)
