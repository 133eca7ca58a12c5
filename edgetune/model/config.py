"""config.json of a base, as far as it is read here: before transformers reads it, which trusts what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError, shown
from edgetune.files import read_json
from edgetune.model.weights import name_folder
from edgetune.recipe import MOST, ExportTable

NUMBERS = {"max_position_embeddings": 1, "bos_token_id": -1, "eos_token_id": -1, "pad_token_id": -1}
"""Keys of a config that are read here and are an integer or several, and the least it can be; -1 means none."""
AGAIN = "fetch or copy the model again"


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a model folder, or generation_config.json. Raises ModelError if it is missing or damaged."""
    file = path / name
    if not file.exists():
        what, cure = name_folder(path) or (f"no {name}", "give the folder of a Hugging Face model")
        raise ModelError(f"{path}: {what}", cure=cure)
    config = read_json(file, ModelError, cure=AGAIN)
    for key, least in NUMBERS.items():
        stated = config.get(key)
        for number in stated if isinstance(stated, list) else [stated]:
            if number is not None and not (type(number) is int and least <= number <= MOST):
                raise ModelError(f"{file}: {key} is {shown(number)}", cure=AGAIN)
    return config


def context_length(config: Mapping[str, Any], table: ExportTable) -> int:
    """Longest text in tokens: the base's, or what the recipe cuts it to."""
    longest = int(config.get("max_position_embeddings") or 2048)
    return min(longest, table.max_length or longest)


def text_limit(path: Path, tokenizer: Any) -> int:
    """Longest text in tokens, special ones included, that an encoder's positions and tokenizer allow."""
    config = read_config(path)
    longest = int(config.get("max_position_embeddings") or 512)
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        pad_id = config.get("pad_token_id")
        longest -= (1 if pad_id is None else pad_id) + 1  # their positions are counted from behind the padding's
    return min(longest, int(tokenizer.model_max_length))
