"""PEFT's file of LoRA tensors: which of them belong together, and what each pair of A and B is scaled by."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import ModelError, shown
from edgetune.model.weights import Place, read_tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
PARTS = "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
WRAPPERS = r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
FAMILY = re.compile(rf"^(?P<module>.+)\.(?P<part>{PARTS})(\.weight)?$")


@dataclass(frozen=True)
class Pair:
    """One LoRA: a (r, in), b (out, r), and with DoRA magnitude (out,). Of an embedding, tokens are out, width is in."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None


def group(folder: Path, places: Mapping[str, Place]) -> tuple[dict[str, dict[str, Place]], dict[str, Place]]:
    """(module -> its LoRA parts, base tensor name -> a weight that was trained whole). Raises ModelError."""
    modules: dict[str, dict[str, Place]] = {}
    whole: dict[str, Place] = {}
    for key, place in places.items():
        if ".original_module." in key:
            continue  # the base's, which a copy in modules_to_save stands in for
        name = _plain(key).removeprefix(PREFIX).replace(".base_layer", "").replace(".modules_to_save", "")
        match = FAMILY.match(name)
        if match is None:
            whole[name] = place
            continue
        parts = modules.setdefault(match["module"], {})
        if match["part"] in parts:
            raise ModelError(f"{folder}: {WEIGHTS} holds {name} twice, as of two adapters", cure="save one alone")
        parts[match["part"]] = place
    return modules, whole


def _plain(key: str) -> str:
    """A key without what torch.compile, DDP, FSDP, checkpointing and PEFT (an adapter's name) put into it."""
    key = re.sub(WRAPPERS, "", key).removeprefix("module.")
    return re.sub(rf"\.({PARTS}|modules_to_save)\.\w+(?=\.(?:weight|bias)$|$)", _without_name, key)


def _without_name(match: re.Match[str]) -> str:
    """The part of `.lora_A.NAME` alone; `.lora_A.weight` has no name in it."""
    return match[0] if match[0].endswith((".weight", ".bias")) else f".{match[1]}"


def read_pair(folder: Path, module: str, parts: Mapping[str, Place], config: Mapping[str, Any]) -> Pair:
    """The pair of a module by its parts. Raises ModelError for parts that do not go together, and for no numbers."""
    is_embedding = bool({"lora_embedding_A", "lora_embedding_B"} & set(parts))
    parts = _as_linear(parts) if is_embedding else parts
    if is_embedding and "lora_magnitude_vector" in parts:
        raise ModelError(f"{folder}: {module}: DoRA of an embedding cannot be merged", cure="train it without use_dora")
    if not {"lora_A", "lora_B"} <= set(parts):
        raise ModelError(f"{folder}: {module} has {' and '.join(sorted(parts))} only; A and B belong together")
    tensors = {part: read_tensor(place).float() for part, place in parts.items()}
    for part, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{folder}: {module}: {part} holds NaN or infinity", cure="train the adapter again")
    a, b = tensors["lora_A"], tensors["lora_B"]
    if is_embedding and a.ndim == b.ndim == 2:
        a, b = a.T.contiguous(), b.T.contiguous()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ModelError(f"{folder}: {module}: A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply")
    magnitude = tensors.get("lora_magnitude_vector")
    if config.get("use_dora") and magnitude is None:
        raise ModelError(f"{folder}: {module}: use_dora without a magnitude")
    if magnitude is not None and magnitude.numel() != b.shape[0]:
        raise ModelError(
            f"{folder}: {module}: {magnitude.numel()} magnitudes for {b.shape[0]} rows", cure="train the adapter again"
        )
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= 1e30:
        raise ModelError(f"{folder / CONFIG}: {module}: alpha is {shown(alpha)}, not a number of any use")
    rank = a.shape[0]
    if rank == 0:
        raise ModelError(f"{folder}: {module}: A and B have rank 0")
    scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Pair(a, b, scaling, None if magnitude is None else magnitude.flatten())


def _as_linear(parts: Mapping[str, Place]) -> dict[str, Place]:
    """The parts of an embedding's LoRA as those of a linear whose weight (tokens, width) is B^T A^T."""
    names = {"lora_embedding_A": "lora_B", "lora_embedding_B": "lora_A"}
    return {names.get(part, part): place for part, place in parts.items()}


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the module's path, or its end after a dot (peft.utils.get_pattern_key)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
