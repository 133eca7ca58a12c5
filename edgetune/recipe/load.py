"""Read a recipe: TOML and overrides, checked at once. First step of every flow.

All problems are told together, in the order of the file, each with its line. "auto" is a value a user can write; the
resolved recipe in the run folder records what it became.
"""

from __future__ import annotations

import re
import sys
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

Places = dict[tuple[str, str | None], int]
"""(table, key) -> the line where it stands, or COMMAND_LINE; (table, None) for the header."""
NOWHERE, COMMAND_LINE = sys.maxsize - 1, sys.maxsize
"""After all lines: problems are told in the order of the file, those of the command line last."""
Problem = tuple[int, str]
"""Where it belongs in that order, and what is told."""


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
    is_of_run = (path.parent / "run.json").is_file()
    return parse_recipe(text, source=str(path), name=path.stem, overrides=overrides, is_of_run=is_of_run)


def parse_recipe(
    text: str, *, source: str, name: str = "run", overrides: Iterable[str] = (), is_of_run: bool = False
) -> Recipe:
    """The recipe in a TOML text; `source` names it in messages. Raises RecipeError.

    `is_of_run`: it was written into a run folder, perhaps by an earlier version: keys that are gone are read over.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of brackets without end
        raise RecipeError(f"{source}: not valid TOML: {error}") from None
    places = _line_numbers(text)
    refused = [_apply_override(raw, override, places) for override in overrides]
    tables, found = _read_tables(raw, source, places, is_of_run=is_of_run)
    found = [(COMMAND_LINE, problem) for problem in refused if problem] + found
    problems = [problem for _, problem in sorted(found, key=lambda item: item[0])]
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


def _read_tables(
    raw: Mapping[str, Any], source: str, places: Places, *, is_of_run: bool
) -> tuple[dict[str, Any], list[Problem]]:
    """The tables of a recipe by name, with the defaults of its task; and all that is wrong with them: then no table."""

    def problem(table: str, key: str | None, text: str) -> Problem:
        line = places.get((table, key), NOWHERE)
        begin = {NOWHERE: f"{source}: ", COMMAND_LINE: "--set "}.get(line, f"{source}:{line}: ")
        order = places.get((table, None), NOWHERE) if line == NOWHERE else line
        return order, f"{begin}{f'{table}.{key}' if key else f'[{table}]'}: {text}"

    problems, checked = list[Problem](), dict[str, dict[str, Any]]()
    for table, values in raw.items():
        if table not in TABLES:
            problems.append(problem(table, None, f"unknown table; {closest(table, TABLES)}"))
        elif not isinstance(values, dict):
            problems.append(problem(table, None, "must be a table"))
    for table, kind in TABLES.items():
        values = raw.get(table, {})
        if isinstance(values, dict):
            known, gone = without_removed(table, values)
            gone = [item for item in gone if not is_of_run or places.get((table, item[0])) == COMMAND_LINE]
            checked[table], found = check_table(kind, known)
            problems += [problem(table, key, text) for key, text in (*gone, *found)]
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
        places[(table, key)] = COMMAND_LINE
    return None


def _line_numbers(text: str) -> Places:
    """(table, key) -> line, read from the plain layout that recipes have; (table, None) for the header."""
    places: Places = {}
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
