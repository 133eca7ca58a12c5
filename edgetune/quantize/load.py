"""A decoder on the grid as a torch model that computes with its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.model.device import device as default_device
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.repairable import make_repairable


def load_on_grid(
    merged: Path,
    matrices: Mapping[str, QuantizedMatrix],
    *,
    rounds_inputs: bool,
    vectors: Mapping[str, Place] | None = None,
) -> Any:
    """The merged folder as a torch model whose matrices are those on the grid, float32, ready to be repaired.

    `vectors`: where norms and biases lie that repair has changed.
    """
    import accelerate
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(merged, local_files_only=True)
    with accelerate.init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    places = {**find_tensors(merged), **(vectors or {})}
    loaded = {name: read_tensor(place).float() for name, place in places.items() if len(place.shape) == 1}
    model.load_state_dict(loaded, strict=False, assign=True)
    make_repairable(model, matrices, rounds_inputs=rounds_inputs)
    model.tie_weights()
    return model.to(default_device()).eval()
