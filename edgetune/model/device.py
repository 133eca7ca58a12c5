"""Where tensors live and in which type they are multiplied."""

from __future__ import annotations

import platform
from typing import Any, Literal

import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def device() -> torch.device:
    """The device that models are put on: the CUDA device in use where there is one (alone, the first), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(name: DtypeName, on: torch.device) -> torch.dtype:
    """The type behind [model] compute_dtype; auto: bfloat16 where `on` multiplies it in hardware, else float32.

    On a CPU with AVX512-BF16 a training step in bfloat16 took 0.7 of the time in float32; without such
    instructions bfloat16 is emulated and slower than float32.
    """
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    return torch.bfloat16 if has_bfloat16(on) else torch.float32


def find_base(model: Any) -> Any:
    """The transformers model under what is put around it, an adapter or a head over labels, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def autocast(model: Any) -> torch.autocast:
    """Autocast to the type in which the model's frozen parts are held; none where that is float32."""
    dtype = held_dtype(model)
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16))


def held_dtype(model: Any) -> torch.dtype:
    """The type in which the frozen parts of a transformers model are held, whatever is put around it."""
    embedding = find_base(model).get_input_embeddings()
    frozen = getattr(embedding, "original_module", embedding)  # where PEFT trains a copy of it
    frozen = getattr(frozen, "plain", frozen)  # where its vectors are quantised
    dtype = frozen.weight.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def has_bfloat16(on: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: Ampere or newer, AVX512-BF16 or AMX."""
    if on.type == "cuda":
        return torch.cuda.get_device_capability(on) >= (8, 0)
    if on.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # Private and older than any public name for it; torch < 2.6 lacks them, later ones may rename them.
    return any(
        bool(getattr(torch.cpu, probe, bool)()) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
