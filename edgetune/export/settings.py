"""genai_config.json: what plain onnxruntime-genai does with the folder when nobody tells it anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.files import read_json, write_json
from edgetune.runtime.bundle import GENAI_CONFIG, ChatFormat

SESSION_OPTIONS = {"intra_op_num_threads": 0, "session.intra_op.allow_spinning": "1"}
"""0 lets onnxruntime count the cores of the machine that loads the folder. Without the key onnxruntime-genai takes half
of the logical processors, which is half of the cores where there is no hyper-threading. Between two small operators a
spinning thread is there at once (measured on two quiet cores: 141 to 165 tokens/s against 75 to 136)."""


def write_settings(folder: Path, *, chat: ChatFormat, context_length: int) -> None:
    """Complete the builder's genai_config.json: threads, when to stop, how long a text may get, greedy by default."""
    path = folder / GENAI_CONFIG
    config = read_json(path)
    model: dict[str, Any] = config["model"]
    model["context_length"] = context_length
    model["eos_token_id"] = list(chat.eos_ids) if len(chat.eos_ids) > 1 else chat.eos_ids[0]
    model["decoder"]["session_options"] |= SESSION_OPTIONS
    config["search"] |= {"max_length": context_length, "do_sample": False}
    write_json(path, config)
