"""`edgetune plan`: check a recipe against the real files and estimate its memory. The work is in plan.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, recipe_argument, set_option

if TYPE_CHECKING:
    from edgetune.plan import Plan
    from edgetune.recipe import Recipe


@click.command("plan", epilog="Example: edgetune plan recipes/quickstart.toml --set train.batch_size=8")
@recipe_argument
@set_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE against the real files and estimate the peak memory of its training.

    Reads config, headers, tokenizer and the first rows; loads no weights. Exits 4 if [budget] memory is too small.
    """
    from edgetune.plan import plan, refuse_over_budget
    from edgetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    planned = plan(loaded)
    if as_json:
        console.say_json(_document(loaded, planned))
    else:
        console.say(_table(loaded, planned))
    refuse_over_budget(loaded, planned)


def _document(recipe: Recipe, planned: Plan) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "base_parameters": planned.estimate.base_parameters,
        "trainable_parameters": planned.estimate.trainable_parameters,
        "parts_bytes": planned.estimate.parts,
        "peak_bytes": planned.estimate.peak_bytes,
        "budget_bytes": planned.allowed_bytes,
        "fits": planned.fits,
        "first_rows": planned.rows,
    }


def _table(recipe: Recipe, planned: Plan) -> str:
    estimate = planned.estimate
    lines = [
        f"{recipe.name}: {recipe.model.base}, {estimate.base_parameters:,} parameters,"
        f" {estimate.trainable_parameters:,} to train"
    ]
    for which, counts in planned.rows.items():
        trained, labels = counts.get("trained_tokens"), counts.get("labels")
        what = f"{labels} labels" if trained is None else f"of which {trained:,} are trained"
        lines.append(
            f"data.{which}: first {counts['rows']} rows read, {counts['tokens']:,} tokens, {what};"
            f" {counts['too_long']} rows longer than max_seq_len"
        )
    lines += ["", "estimated peak of training                 MiB"]
    lines += [f"  {name:<36} {_mib(size):>8}" for name, size in estimate.parts.items() if size]
    lines.append(f"  {'total':<36} {_mib(estimate.peak_bytes):>8}")
    if recipe.budget.memory is not None:
        lines.append(f"  {'budget.memory':<36} {recipe.budget.memory:>8}")
    return "\n".join(lines)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.1f}"
