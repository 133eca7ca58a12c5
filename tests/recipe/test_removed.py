"""Keys that are gone: read over where they say what now holds, told about where they do not."""

from __future__ import annotations

import pytest

from edgetune.errors import RecipeError
from edgetune.recipe import TABLES, as_toml, parse_recipe, unknown_key
from edgetune.recipe.removed import REMOVED

SMALL = '[model]\nbase = "b"\n[data]\ntrain = "t"\n'


@pytest.mark.parametrize("name", REMOVED)
def test_a_key_that_is_gone_is_no_key_of_a_table_that_is_there(name: str) -> None:
    table, _, key = name.partition(".")
    assert not hasattr(TABLES[table], key)
    assert unknown_key(name) == f"was removed: {REMOVED[name].reason}"


@pytest.mark.parametrize("name", REMOVED)
def test_a_recipe_of_an_earlier_run_folder_reads_as_before(name: str) -> None:
    table, _, key = name.partition(".")
    text = f"{SMALL}[{table}]\n{key} = {as_toml(REMOVED[name].now)}\n"
    assert parse_recipe(text, source="r.toml") == parse_recipe(SMALL, source="r.toml")


@pytest.mark.parametrize("name", REMOVED)
def test_a_recipe_that_asks_for_something_else_is_told_in_one_line_what_to_do(name: str) -> None:
    table, _, key = name.partition(".")
    told = f"{name}: was removed: {REMOVED[name].reason}; leave it out"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"{SMALL}[{table}]\n{key} = 7\n", source="r.toml")
    assert str(caught.value) == f"r.toml:6: {told}"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL, source="r.toml", overrides=[f"{name}=7"])
    assert str(caught.value) == f"--set {told}"
