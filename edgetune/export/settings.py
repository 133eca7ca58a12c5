"""genai_config.json: what plain onnxruntime-genai does with the folder when nobody tells it anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.run_dir import read_json, write_json
from edgetune.runtime.bundle import GENAI_CONFIG, ChatFormat


def write_settings(folder: Path, *, chat: ChatFormat, context_length: int) -> None:
    """Complete the builder's genai_config.json: when to stop, how long a text may get, greedy by default."""
    path = folder / GENAI_CONFIG
    config = read_json(path)
    model: dict[str, Any] = config["model"]
    model["context_length"] = context_length
    model["eos_token_id"] = list(chat.eos_ids) if len(chat.eos_ids) > 1 else chat.eos_ids[0]
    config["search"] |= {"max_length": context_length, "do_sample": False}
    write_json(path, config)
