"""What `edgetune tune --population N` shows. The work is in tune/population.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.cli import console

if TYPE_CHECKING:
    from edgetune.recipe import Recipe
    from edgetune.tune.population import PopulationResult


SCORED = {
    "deployed": "each weight rounded onto the grid by itself",
    "exported": "as export makes it",
    "trained": "as it was trained",
}
"""tune.score_of for people."""


def train_and_show(recipe: Recipe, path: Path, *, force: bool, as_json: bool) -> None:
    """Train the recipe's population in a folder, and show the best member."""
    from edgetune.tune.member import PopulationDir
    from edgetune.tune.population import train_population

    progress = console.ProgressLine()
    try:
        result = train_population(recipe, PopulationDir(path), force=force, progress=progress)
    finally:
        progress.close()
    if as_json:
        folder = result.folder
        facts = {"population_folder": str(path), "best_run": str(folder.run.path), "best_recipe": str(folder.best)}
        console.say_json({**facts, **result.document})
    else:
        console.say(_table(result))


def _table(result: PopulationResult) -> str:
    found, folder = result.document, result.folder
    best = found["best"]
    names = ("loss",) if best["score"] is None else ("score", "loss")
    told = ", ".join(f"{name} {best[name]:.4g}" for name in names)
    return "\n".join(
        [
            f"best        member {best['member']} of {found['population']}: {told}",
            f"            {found['metric']} on {best['rows']} eval rows, {SCORED[found['score_of']]}",
            *(f"  {key:<28} {_course(best['lineage'], key)}" for key in found["space"]),
            f"members     {found['population']}, each {found['steps']:,} steps in {found['generations']} generations, "
            f"{found['copies']} copies",
            f"cost        {found['tokens']:,} tokens, {found['member_minutes']:.1f} minutes of members",
            f"recipe      {folder.best}",
            f"run folder  {folder.run.path}",
            f"picture     {folder.picture}",
        ]
    )


def _course(lineage: Mapping[str, Any], key: str) -> str:
    """A key's values over the steps."""
    later = [f"{change[key]:.3g} after step {change['after_step']}" for change in lineage["changes"] if key in change]
    return ", ".join([f"{lineage['values'][key]:.3g}", *later])
