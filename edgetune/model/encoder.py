"""Bases that read: encoders without a head, for tasks that put one of their own on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError

NAME = "an encoder"
KINDS: tuple[str, ...] = ("bert", "deberta-v2", "distilbert", "modernbert", "roberta", "xlm-roberta")
"""model_type of those that can be trained and exported. Tests export each."""
AUTO_CLASS = "AutoModel"


def check_kind(path: Path, kind: str, _config: Mapping[str, Any]) -> None:
    """Raises ModelError for a model_type that is none of these."""
    if kind not in KINDS:
        raise ModelError(
            f"{path}: '{kind}' is not {NAME} that EdgeTune can export", cure=f"known are: {', '.join(KINDS)}"
        )
