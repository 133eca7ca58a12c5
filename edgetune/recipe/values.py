"""Values of keys: the types and bounds of a table's fields, sizes, and how a recipe writes a value."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from edgetune.errors import RecipeError, shown

MOST = 2**31 - 1
"""Of any integer in a recipe that has no bound of its own."""


def at(default: Any, *, least: float | None = None, most: float | None = None, above: float | None = None) -> Any:
    """A dataclass field with bounds: least <= value <= most, or value > above."""
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def filled(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for a name or path: any text but ""."""
    return field(default=default, metadata={"filled": True})


def check_table(kind: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of one table in the types of `kind`, and (key, problem) for each that cannot stand."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for key, value in values.items():
        if key not in fields:
            problems.append((key, f"unknown key; {closest(key, fields)}"))
            continue
        converted, problem = _convert(value, hints[key])
        problem = problem or _out_of_bounds(converted, fields[key].metadata)
        if problem:
            problems.append((key, problem))
        else:
            checked[key] = converted
    missing = [
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and name not in values
    ]
    problems += [(name, "missing; this key has no default") for name in missing]
    return checked, problems


def parse_size(text: str | None, *, where: str = "size") -> int | None:
    """Bytes in "2 GiB", "512 MiB", "8GB" or "8G" (GB and G are read as GiB); None for None. Raises RecipeError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])i?B?\s*", text, re.IGNORECASE)
    if not match:
        raise RecipeError(f"{where}: {shown(text)} is not a size", cure='write it as "2 GiB" or "512 MiB"')
    size = int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))
    if not size:
        raise RecipeError(
            f"{where}: {shown(text)} leaves no room for anything", cure='write it as "2 GiB" or "512 MiB"'
        )
    return size


def as_toml(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return repr(value)


def closest(word: str, known: Iterable[str]) -> str:
    """What to tell of a word that is not among the known ones."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'?" if matches else f"known: {', '.join(known)}"


def describe(hint: Any) -> str:
    """The values that a field of this type takes, as in "an integer or a text in quotes"."""
    return " or ".join(_describe(option) for option in types_of(hint) if option is not type(None))


def types_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; the one type of another hint."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _convert(value: Any, hint: Any) -> tuple[Any, str | None]:
    """The value in the type of the hint, or why it is none. Integers serve as floats; nothing else is converted."""
    for option in types_of(hint):
        accepted, converted = _accept(value, option)
        if accepted:
            return converted, None
    if float in types_of(hint) and isinstance(value, float) and math.isinf(value):
        return None, f"{shown(value)} must be finite"
    return None, f"{shown(value)} is not {describe(hint)}"


def _accept(value: Any, option: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args), value
    if origin is tuple:
        if isinstance(value, list) and all(_accept(item, args[0])[0] for item in value):
            return True, tuple(value)
        return False, None
    if origin is dict:
        is_plain = args[1] is Any
        return isinstance(value, dict) and all(is_plain or isinstance(item, str) for item in value.values()), value
    if option is float and type(value) in (int, float):
        is_finite = abs(value) <= sys.float_info.max  # also of an integer that no float holds
        return is_finite, float(value) if is_finite else value
    return type(value) is option, value


def _describe(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    names = {int: "an integer", float: "a number", str: "a text in quotes", bool: "true or false"}
    return names.get(option, "a table" if args[1:] == (Any,) else "a table of texts")


def _out_of_bounds(value: Any, bounds: Mapping[str, Any]) -> str | None:
    if value == "" and bounds.get("filled"):
        return "is empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    least, most, above = bounds.get("least"), bounds.get("most"), bounds.get("above")
    if above is not None and value <= above:
        return f"{shown(value)} must be greater than {above:g}"
    if least is not None and value < least:
        return f"{shown(value)} must be at least {least:g}"
    if most is not None and value > most:
        return f"{shown(value)} must be at most {most:g}"
    if most is None and isinstance(value, int) and abs(value) > MOST:
        return f"is beyond {MOST:,}, which is more than anything here can mean"
    return None
