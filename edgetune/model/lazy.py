"""A decoder larger than memory: each weight is read when its layer runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetune.model.weights import EMBEDDING_TENSOR, HEAD_TENSOR, Place, read_tensor


class CheckpointTensors(Mapping[str, Tensor]):
    """Parameter name of the torch model -> float32 tensor from the checkpoint's file, read when it is asked for."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        is_tied = name == HEAD_TENSOR and name not in self._places
        return read_tensor(self._places[EMBEDDING_TENSOR if is_tied else name]).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def lazy_model(merged: Path, tensors: Mapping[str, Tensor]) -> Any:
    """A transformers model that fetches each weight when its layer runs and drops it after: memory holds one layer."""
    import accelerate
    from accelerate.hooks import attach_align_device_hook
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(merged, local_files_only=True)
    with accelerate.init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=True, weights_map=tensors)
    return model.eval()
