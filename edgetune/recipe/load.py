"""Read a recipe: TOML and overrides, checked at once. First step of every flow.

All problems are told together, each with its file and line. "auto" is a value a user can write; the resolved recipe in
the run folder records what it became.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import RecipeError, shown
from edgetune.recipe.check import problem_with
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.removed import without_removed
from edgetune.recipe.tables import TABLES, ModelTable
from edgetune.recipe.task import TASKS
from edgetune.recipe.values import check_table, closest, parse_size

Places = dict[tuple[str, str | None], str]
"""(table, key) -> how a problem with it begins; (table, None) for the header."""


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, apply `table.key=value` overrides, check everything.

    Relative paths in [model] and [data] stay as written: they are relative to the current folder, as on a command line.
    Raises RecipeError with one line for each problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe", cure="give the path of a .toml file") from None
    except OSError as error:
        raise RecipeError(f"{shown(str(path))}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    return parse_recipe(text, source=str(path), name=path.stem, overrides=overrides)


def parse_recipe(text: str, *, source: str, name: str = "run", overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML text; `source` names it in messages. Raises RecipeError."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of brackets without end
        raise RecipeError(f"{source}: not valid TOML: {error}") from None
    places = {place: f"{source}:{line}: " for place, line in _line_numbers(text).items()}
    refused = [_apply_override(raw, override, places) for override in overrides]
    tables, problems = _read_tables(raw, source, places)
    problems = [problem for problem in refused if problem] + problems
    if len(problems) == 1:
        raise RecipeError(problems[0])
    if problems:
        raise RecipeError("\n".join([f"{len(problems)} problems", *problems]), problems=problems)
    recipe = Recipe(**tables, name=name)
    if problem := problem_with(recipe, stated=raw.keys()):
        raise RecipeError(f"{source}: {problem}")
    for key in ("memory", "gpu_memory", "device_memory"):
        parse_size(getattr(recipe.budget, key), where=f"{source}: budget.{key}")
    return recipe


def _read_tables(raw: Mapping[str, Any], source: str, places: Places) -> tuple[dict[str, Any], list[str]]:
    """The tables of a recipe by name, with the defaults of its task; and all that is wrong with them: then no table."""

    def place(table: str, key: str | None = None) -> str:
        return places.get((table, key), f"{source}: ") + (f"{table}.{key}" if key else f"[{table}]")

    problems, checked = [], dict[str, dict[str, Any]]()
    for table, values in raw.items():
        if table not in TABLES:
            problems.append(f"{place(table)}: unknown table; {closest(table, TABLES)}")
        elif not isinstance(values, dict):
            problems.append(f"{place(table)}: must be a table")
    for table, kind in TABLES.items():
        values = raw.get(table, {})
        if isinstance(values, dict):
            known, gone = without_removed(table, values)
            checked[table], found = check_table(kind, known)
            problems += [f"{place(table, key)}: {problem}" for key, problem in (*gone, *found)]
    if problems:
        return {}, problems
    defaults = TASKS[checked["model"].get("task", ModelTable.task)].defaults
    return {table: kind(**{**defaults.get(table, {}), **checked[table]}) for table, kind in TABLES.items()}, []


def _apply_override(raw: dict[str, Any], override: str, places: Places) -> str | None:
    """Put one `table.key=value` into the raw tables; the problem with it, if any."""
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().replace("-", "_").partition(".")
    if not (equals and dot and table and key):
        return f"--set {override}: must be table.key=value, e.g. train.learning_rate=1e-4"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    values = raw.setdefault(table, {})
    if isinstance(values, dict):
        values[key] = value
        places[(table, key)] = "--set "
    return None


def _line_numbers(text: str) -> dict[tuple[str, str | None], int]:
    """(table, key) -> line, read from the plain layout that recipes have; (table, None) for the header."""
    places: dict[tuple[str, str | None], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            table = header[1]
            places.setdefault((table, None), number)
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            places.setdefault((table, key[1]), number)
            if not table:
                places.setdefault((key[1], None), number)
    return places
