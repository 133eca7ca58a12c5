"""Adapters on a live model: attach a new one, go on from an old one, save, load. PEFT's own format throughout.

In the flow: loaded base -> PeftModel -> training -> runs/x/adapter/. edgetune.json beside the weights says which base
(by content) and which quantisation the adapter was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.recipe import LoraTable, ModelTable


def attach(model: Any, table: LoraTable, *, gradient_checkpointing: bool = False) -> Any:
    """The base with a trainable adapter, a PeftModel: new by r, alpha and targets, or the one in `init_from`.

    Adapter weights are float32, all else is frozen. Raises ModelError if no linear fits target_modules or the adapter
    in init_from belongs to another base.
    """
    raise RuntimeError("being written")


def save(model: Any, folder: Path, table: ModelTable) -> None:
    """Write the adapter (float32) in PEFT's format and edgetune.json, all or nothing. `table` is the recipe's [model].

    Raises RunError if the folder cannot be written.
    """
    raise RuntimeError("being written")


def load(model: Any, folder: Path) -> Any:
    """The base with a saved adapter, frozen and in eval mode. Raises ModelError if it belongs to another base."""
    raise RuntimeError("being written")


def check_adapter(folder: Path, base: Path) -> None:
    """Raises ModelError unless the adapter is a LoRA whose every tensor fits the base in folder `base`."""
    raise RuntimeError("being written")
