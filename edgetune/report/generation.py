"""What reports and cards say of decoders: the words of the task "generation", see report/task.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.runtime.bundle import Bundle

KIND = "decoder"
RESULT = "A fine-tune"
UNIT = "trained token"
TRY_VERB = "chat"
HUB_TASK = "text-generation"
OPENED_BY: tuple[str, ...] = ("onnxruntime-genai",)
AUTO_CLASS = "AutoModelForCausalLM"
FOLDED = "`edgetune merge` folds it into its base."
COMMAND = 'edgetune generate path/to/this/folder "a text"'
PYTHON: tuple[str, ...] = (
    "from edgetune.runtime.decoder import Decoder",
    "",
    'print(Decoder("path/to/this/folder").generate("a prompt").text)',
)
LENGTH = "prompt and answer together"


def abilities(bundle: Bundle) -> str | None:  # noqa: ARG001
    """Nothing: a decoder answers anything."""
    return None


def refusals(bundle: Bundle) -> str | None:  # noqa: ARG001
    """Nothing: a decoder always answers."""
    return None


def details(score: Any, results: Path, *, title: str) -> Mapping[str, Any] | None:  # noqa: ARG001
    """Nothing: the table has all of a decoder's scores."""
    return None
