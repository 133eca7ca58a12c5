"""Liger's fused norms, rotary embeddings and gated MLPs, where the recipe asks for them: fewer, larger GPU kernels.

In the flow: around the loop's steps. The loss stays EdgeTune's own, which never makes the logits of a batch. Liger also
swaps functions of transformers' modules; they are put back, for what comes after the training may run on a CPU.
Source: Liger Kernel, arXiv:2410.10989, sections 3.1 and 3.2.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch

from edgetune.errors import HardwareError, MissingExtraError, RecipeError
from edgetune.model.device import find_base

KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "geglu": True,
    "layer_norm": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}
"""Which of Liger's kernels, in the words of its own options; each architecture takes those it knows."""


def check_liger(is_asked: bool, model_type: str) -> None:
    """Raises HardwareError without an NVIDIA GPU, MissingExtraError without the package, RecipeError for an
    architecture (config.model_type) that Liger does not know.
    """
    if not is_asked:
        return
    if not torch.cuda.is_available():
        raise HardwareError("train.use_liger_kernel: Liger's kernels need a GPU", cure="leave it out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise MissingExtraError("train.use_liger_kernel: Liger is not installed", cure="pip install 'edgetune[liger]'")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RecipeError(f"train.use_liger_kernel: Liger has no kernels for {model_type}", cure="leave it out")


@contextlib.contextmanager
def liger_kernels(model: Any, is_asked: bool) -> Iterator[None]:
    """Inside the block the model, a PeftModel or its base, computes with Liger's kernels."""
    if not is_asked:
        yield
        return
    from transformers.integrations.liger import apply_liger_kernel

    base = find_base(model)
    module = sys.modules[type(base).__module__]
    before = dict(vars(module))
    try:
        apply_liger_kernel(base, KERNELS)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
