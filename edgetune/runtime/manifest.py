"""edgetune.json, the manifest of a bundle: the names of the files beside it, and what values in it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from edgetune.errors import shown
from edgetune.recipe import check_table

MANIFEST = "edgetune.json"
GENAI_CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
GRAPH = "model.onnx"
MOST_TOKENS = 2**31 - 1
"""Of a vocabulary and of a text: the libraries count them in 32 bits."""
_Facts = TypeVar("_Facts")


def is_text(value: Any) -> bool:
    """Whether it is text that can be written out; half a surrogate pair, which JSON can hold, cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, *, least: int = 0) -> bool:
    """Whether it is an integer that a token's id or a number of tokens can be."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST_TOKENS


def table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The value of a name. Raises ValueError if it is no table, KeyError if it is not there."""
    if not isinstance(values[name], Mapping):
        raise ValueError(f"{name} is {shown(values[name])}")
    return cast(Mapping[str, Any], values[name])


def facts(kind: type[_Facts], where: str, values: Any) -> _Facts:
    """The dataclass that a table holds. Raises ValueError for the first value of the wrong kind."""
    checked, problems = check_table(kind, values)
    if problems:
        raise ValueError(f"{where}.{': '.join(problems[0])}")
    return kind(**checked)


def refuse(where: str, format_: object, good: Mapping[str, bool]) -> None:
    """Raises ValueError for the first value of a format that is not good."""
    wrong = next((name for name, is_good in good.items() if not is_good), None)
    if wrong is not None:
        raise ValueError(f"{where}.{wrong} is {shown(getattr(format_, wrong))}")
