"""Keys by name, like "train.epochs": whether there is such a key, and what values it takes."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from edgetune.recipe.removed import REMOVED
from edgetune.recipe.tables import TABLES
from edgetune.recipe.values import check_table, types_of


def unknown_key(name: str) -> str | None:
    """What to tell of a name that is no key like "train.epochs"; None for one that is."""
    known = [f"{table}.{item.name}" for table, kind in TABLES.items() for item in dataclasses.fields(kind)]
    if name in known:
        return None
    if name in REMOVED:
        return f"was removed: {REMOVED[name].reason}"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no such key; {f'did you mean {close[0]!r}?' if close else 'name it like train.learning_rate'}"


def check_value(name: str, value: Any) -> tuple[Any, str | None]:
    """The value of a key like "train.epochs" in its type, or what is wrong with it."""
    table, _, key = name.partition(".")
    checked, problems = check_table(TABLES[table], {key: value})
    return checked.get(key), next((problem for place, problem in problems if place == key), None)


def number_kind(name: str) -> type | None:
    """float or int, where a key like "train.epochs" takes any such number; None where it does not."""
    table, _, key = name.partition(".")
    hint = typing.get_type_hints(TABLES[table])[key]
    return next((kind for kind in (float, int) if kind in types_of(hint)), None)
