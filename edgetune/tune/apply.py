"""Values put into a recipe's own file, line by line, so that its comments and its order stay."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import RecipeError, RunError
from edgetune.files import write_text
from edgetune.recipe import as_toml, load_recipe, parse_recipe
from edgetune.tune.space import recipe_with


def apply_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write values of keys like "train.epochs" into a recipe's file, atomically.

    Raises RunError, the file as it was, where a value stands in a way that this does not read, or cannot be written.
    """
    text = path.read_text(encoding="utf-8")
    changed = with_values_in(text, values)
    wanted = recipe_with(load_recipe(path), values)
    try:
        is_right = parse_recipe(changed, source=str(path), name=path.stem) == wanted
    except RecipeError:
        is_right = False
    if not is_right:
        raise RunError(
            f"{path}: its values do not stand one a line and cannot be changed", cure="take best.toml of the study"
        )
    write_text(path, changed)


def with_values_in(text: str, values: Mapping[str, Any]) -> str:
    """A recipe's text with other values: in their lines where they have one, else at the end of their tables."""
    lines = text.splitlines()
    for name, value in values.items():
        table, _, key = name.partition(".")
        start, stop = _table(lines, table)
        if start is None:
            lines += ["", f"[{table}]", f"{key} = {as_toml(value)}"]
            continue
        place = next((at for at in range(start, stop) if re.match(rf"\s*{re.escape(key)}\s*=", lines[at])), None)
        if place is None:
            while stop > start and not lines[stop - 1].strip():
                stop -= 1
            lines.insert(stop, f"{key} = {as_toml(value)}")
        else:
            lines[place] = _replaced(lines[place], value)
    return "\n".join(lines) + "\n"


def _table(lines: list[str], table: str) -> tuple[int | None, int]:
    """The lines of a table after its header: first, and one past the last; None where it has no header."""
    start = next((at for at, line in enumerate(lines, 1) if _header(line) == table), None)
    if start is None:
        return None, len(lines)
    return start, next((at for at in range(start, len(lines)) if _header(lines[at]) is not None), len(lines))


def _header(line: str) -> str | None:
    found = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
    return found[1] if found and "=" not in line.partition("#")[0] else None


def _replaced(line: str, value: Any) -> str:
    """A line `key = value # comment` with another value."""
    before, _, rest = line.partition("=")
    space = rest[: len(rest) - len(rest.lstrip())]
    comment = ""
    for found in re.finditer("#", rest):
        try:
            tomllib.loads(f"value = {rest[: found.start()]}")
        except ValueError:
            continue  # a # inside a text
        kept = rest[: found.start()].rstrip()
        comment = rest[len(kept) :]
        break
    return f"{before}={space}{as_toml(value)}{comment}"
