"""Options that several verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path

import click

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
