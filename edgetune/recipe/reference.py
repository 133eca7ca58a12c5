"""The reference of all keys, made from the tables: python -m edgetune.recipe.reference > docs/recipe.md"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Iterator

from edgetune.recipe.tables import TABLES
from edgetune.recipe.task import TASKS
from edgetune.recipe.values import as_toml, describe

HEAD = """# Recipes, key by key

Made from the tables of `edgetune/recipe` by `python -m edgetune.recipe.reference > docs/recipe.md`. A key without a
default has to be given; one whose default is `-` may be left out. Any key can be set on the command line:
`--set train.learning_rate=1e-4`.
"""


def reference() -> str:
    """The page, in Markdown: a section a table, a row a key."""
    return "\n".join([HEAD, *(line for table in TABLES for line in _section(table))])


def _section(table: str) -> Iterator[str]:
    kind = TABLES[table]
    hints, told = typing.get_type_hints(kind), _told(kind)
    about = " ".join((kind.__doc__ or "").split()).partition(": ")[2]
    yield from (f"## [{table}]", "", f"{about[:1].upper()}{about[1:]}", "")
    yield from ("| key | value | default | |", "|---|---|---|---|")
    for item in dataclasses.fields(kind):
        value = describe(hints[item.name]) + _bounds(item)
        yield f"| `{item.name}` | {_cell(value)} | {_default(table, item)} | {_cell(told.get(item.name, ''))} |"
    yield ""


def _told(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, in one line."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(kind)).body[0]).body
    found = {}
    for field, text in itertools.pairwise(body):
        is_told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_told:
            found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return found


def _bounds(item: dataclasses.Field[typing.Any]) -> str:
    """What a number must keep to, e.g. ", at least 1"."""
    words = {"above": "above", "least": "at least", "most": "at most"}
    found = [f"{word} {item.metadata[key]:g}" for key, word in words.items() if item.metadata.get(key) is not None]
    return "".join(f", {bound}" for bound in found)


def _default(table: str, item: dataclasses.Field[typing.Any]) -> str:
    """The default as a recipe writes it, and that of a task which has another."""
    default = item.default_factory() if callable(item.default_factory) else item.default
    if default is dataclasses.MISSING:
        return ""
    found = "-" if default in (None, {}) else f"`{as_toml(default)}`"
    others = [(name, task.defaults.get(table, {}).get(item.name)) for name, task in TASKS.items()]
    return found + "".join(f"; {name}: `{as_toml(value)}`" for name, value in others if value is not None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
