"""Merge: adapter + base -> a plain Hugging Face folder, one tensor at a time.

In the flow: runs/x/adapter/ and the base's files -> runs/x/merged/, which export and evaluation read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class MergeResult:
    """A finished merge. `merged_tensors` weights got an adapter's product; `quantized_tensors` were put on NF4 first."""

    path: Path
    merge_base: Literal["trained", "original"]
    dtype: str
    merged_tensors: int
    quantized_tensors: int
    size_bytes: int
    peak_bytes: int
    wall_s: float


def merge_weight(base: Tensor, a: Tensor, b: Tensor, *, scaling: float, magnitude: Tensor | None = None) -> Tensor:
    """Fold one LoRA pair into its base weight: W + scaling * B @ A; with `magnitude`, rows rescaled to it (DoRA).

    base (out, in), a (r, in), b (out, r), magnitude (out,) -> (out, in) in base's dtype; summed in float32.
    Source: LoRA, arXiv:2106.09685, section 4.1; DoRA, arXiv:2402.09353, section 4. Raises ModelError if they do not fit.
    """
    raise RuntimeError("being written")


def merge(
    adapter: Path,
    base: Path,
    out: Path,
    *,
    merge_base: Literal["trained", "original"] = "trained",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write `out`, a Hugging Face folder with the adapter folded into its base (a folder), replacing what is there.

    "trained" puts the linears that training held in NF4 on that same grid first, as the adapter's edgetune.json says
    (without one: NF4, double quantisation, bfloat16). dtype: see `merged_dtype`. Memory: a few times the largest
    tensor. Raises ModelError for an adapter of another base or a base that is itself a merge, RunError for a full disk.
    """
    raise RuntimeError("being written")
