"""The type in which models are multiplied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetune.lora.adapter import attach
from edgetune.model.base import load_merged
from edgetune.model.device import autocast, find_base, held_dtype
from edgetune.recipe import LoraTable


@pytest.mark.parametrize(("dtype", "is_cast"), [(torch.float32, False), (torch.bfloat16, True)])
def test_a_model_is_multiplied_in_the_type_of_its_frozen_parts_adapted_or_not(
    tiny_base: Path, dtype: torch.dtype, is_cast: bool
) -> None:
    base = load_merged(tiny_base, dtype=dtype)
    adapted = attach(base, LoraTable(r=2, target_modules=["q_proj"]))
    assert next(part for name, part in adapted.named_parameters() if "lora_A" in name).dtype == torch.float32
    for model in (base, adapted):
        assert find_base(model) is base
        assert held_dtype(model) == dtype
        with autocast(model):
            assert torch.is_autocast_enabled("cpu") == is_cast
            if is_cast:
                assert torch.get_autocast_dtype("cpu") == dtype
