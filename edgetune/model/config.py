"""config.json of a base, as far as it is read here: before transformers reads it, which trusts what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.errors import ModelError, shown
from edgetune.files import read_json
from edgetune.model.weights import name_folder
from edgetune.recipe import MOST

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
