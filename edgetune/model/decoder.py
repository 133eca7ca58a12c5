"""Bases that write: transformers' decoders, with their output head."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError

NAME = "a decoder"
KINDS: tuple[str, ...] = ()
"""None by name: whatever transformers knows."""
AUTO_CLASS = "AutoModelForCausalLM"


def check_kind(path: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for a model_type that the installed transformers has no decoder for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    close = difflib.get_close_matches(kind, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), n=3)
    known = close or ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "smollm3"]
    own_code = "; its own Python code needs trust_remote_code = true" if config.get("auto_map") else ""
    raise ModelError(
        f"{path}: '{kind}' is not {NAME} that the installed transformers knows{own_code}",
        cure=f"known are, among {len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}: {', '.join(known)}",
    )
