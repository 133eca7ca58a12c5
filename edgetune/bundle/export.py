"""The export stage: merged model in the run folder -> verified bundle in the run folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgetune.bundle.place import ExportResult
from edgetune.bundle.task import TASKS, task_of
from edgetune.errors import RunError
from edgetune.progress import Progress
from edgetune.recipe import Recipe, parse_recipe
from edgetune.run_dir import RunDir


def export(
    recipe: Recipe,
    run_dir: RunDir,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Build runs/x/bundle (or `out`) from runs/x/merged, verify it on the recipe's rows, put it in place if it holds.

    A bundle that fails is left as runs/x/bundle.failed, marked as not verified, and an older bundle stays as it is.
    Raises CheckError, which names the checks that failed; ModelError for an architecture that cannot be exported,
    before any work; RunError without a merged model, or with a bundle in place and no `force`.
    """
    out = refuse_early(recipe, run_dir, out, force=force)
    if out == run_dir.bundle and run_dir.run_json.exists():
        run_dir.forget("export")  # what the pipeline knows of the bundle ends here
    return TASKS[recipe.model.task].export(run_dir.merged, out, recipe, cache=run_dir.cache, progress=progress)


def refuse_early(recipe: Recipe, run_dir: RunDir, out: Path | None, *, force: bool) -> Path:
    """Where the run's bundle is to be. Raises, before any work, what `export` says of model, architecture and place."""
    if not (run_dir.merged / "config.json").is_file():
        raise RunError(f"{run_dir.merged}: no merged model", cure=f"make it first: edgetune merge {run_dir.path}")
    TASKS[recipe.model.task].check_merged(run_dir.merged)
    out = out or run_dir.bundle
    if out.exists() and not force:
        raise RunError(f"{out}: there is something already", cure="replace it with --force")
    return out


def export_merged(
    merged: Path, out: Path, data: str, overrides: Iterable[str] = (), *, progress: Progress | None = None
) -> ExportResult:
    """The bundle `out` of a merged folder that lies in no run, on rows from `data`, the rest of the recipe as
    `overrides` say. Raises RecipeError, and what `export` raises.
    """
    name = task_of(merged)
    task = TASKS[name]
    text = f'[model]\nbase = {json.dumps(str(merged))}\ntask = "{name}"\n[data]\ntrain = {json.dumps(data)}\n'
    recipe = parse_recipe(text, source=str(merged), name=merged.resolve().name, overrides=overrides)
    recipe = task.as_trained(recipe, merged)
    with tempfile.TemporaryDirectory() as cache:
        return task.export(merged, out, recipe, cache=Path(cache), progress=progress)
