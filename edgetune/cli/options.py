"""Options that several verbs share, spelled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetune.cli import console
from edgetune.launch import launched

if TYPE_CHECKING:
    from edgetune.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
set_option = click.option(
    "--set",
    "overrides",
    metavar="TABLE.KEY=VALUE",
    multiple=True,
    help="Change one key of the recipe, e.g. --set train.learning_rate=1e-4. May be repeated.",
)
out_option = click.option(
    "-o", "--out", "--output-dir", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<recipe name>]"
)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


adapter_option = click.option(
    "--adapter",
    metavar="NAME",
    help='Answer with this adapter of the bundle, "none" being the base alone.  [default: the one it was made with]',
)


def read_recipe(path: Path, overrides: tuple[str, ...]) -> Recipe:
    """The recipe that a verb is given; keys in it that do nothing for its task are named. Raises RecipeError."""
    from edgetune.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    if recipe.idle_keys and launched().is_main:
        from edgetune.report.task import TASKS

        kind = TASKS[recipe.model.task].kind
        console.note(f"{path}: {', '.join(recipe.idle_keys)}: no effect on a {kind}")
    return recipe


def sampling_options(command: _Command) -> _Command:
    """--max-new-tokens, --temperature, --top-p, --seed: how a bundle answers; the names `Decoder.generate` takes."""
    options = (
        click.option("--max-new-tokens", default=256, show_default=True, help="Longest answer."),
        click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token each time."),
        click.option("--top-p", default=1.0, show_default=True, help="Sample from the likeliest tokens of this mass."),
        click.option("--seed", default=0, show_default=True, help="The same seed gives the same answer."),
    )
    for option in reversed(options):
        command = option(command)
    return command
