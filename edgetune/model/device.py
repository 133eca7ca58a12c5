"""Where tensors live and in which type they are multiplied."""

from __future__ import annotations

from typing import Literal

import torch


def device() -> torch.device:
    """The device that models are put on: the first CUDA device where there is one, else the CPU."""
    raise RuntimeError("being written")


def compute_dtype(name: Literal["auto", "float32", "bfloat16", "float16"], on: torch.device) -> torch.dtype:
    """The type behind [model] compute_dtype; auto: bfloat16 where `on` multiplies it in hardware, else float32."""
    raise RuntimeError("being written")
