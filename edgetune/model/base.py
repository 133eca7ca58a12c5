"""Bases: find the folder, refuse what is unsafe or broken, load tokenizer and model. First step of training.

Frozen parts that are not quantised (embeddings, norms, head) are held in the compute type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgetune.recipe import ModelTable


def resolve_base(base: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a base: `edgetune:nano`, a folder, or a hub id (fetched into the hub's own cache).

    Of a hub model only safetensors, JSON, tokenizer and template files are fetched; Python only if trusted.
    Raises ModelError if there is no such base or the hub cannot be reached.
    """
    raise RuntimeError("being written")


def check_base(path: Path) -> dict[str, Any]:
    """config.json of a base that can be loaded safely: complete safetensors, a known decoder, not quantised before.

    Reads headers only. Raises ModelError that says what is missing, broken, unsafe or unknown.
    """
    raise RuntimeError("being written")


def hash_base(path: Path) -> str:
    """SHA-256 over the names and bytes of a base's safetensors files, hex; remembered within the process."""
    raise RuntimeError("being written")


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a base's or merged model's folder. Raises ModelError if there is none or it is damaged."""
    raise RuntimeError("being written")


def load_base(table: ModelTable, *, device: torch.device | None = None) -> Any:
    """The base of a recipe as a transformers model in eval mode, all parameters frozen.

    quantization "nf4": every linear but the output head in bitsandbytes NF4 (64 weights a block); all else in the
    compute type. "none": everything in the compute type. Raises ModelError.
    """
    raise RuntimeError("being written")


def load_merged(path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
    """A merged (or any plain) model folder as a transformers model in eval mode, all parameters frozen and in dtype."""
    raise RuntimeError("being written")
