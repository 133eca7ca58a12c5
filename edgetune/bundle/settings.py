"""genai_config.json: what plain onnxruntime-genai does with the folder when nobody tells it anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.files import read_json, write_json
from edgetune.runtime.bundle import GENAI_CONFIG, ChatFormat
from edgetune.runtime.session import SPIN_US, spin_options

SESSION_OPTIONS = {"intra_op_num_threads": 0, **spin_options(SPIN_US)}
"""0 lets onnxruntime count the cores of the machine that loads the folder. Without the key onnxruntime-genai takes half
of the logical processors, which is half of the cores where there is no hyper-threading. Between two small operators a
thread that spins for a moment is there at once; one that spins for longer robs a busy device (see `SPIN_US`)."""


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
