"""`edgetune export-best`: search for the best int4 bundle of a run within [budget]. The work is in bundle/search.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.exported import recipe_of, show, write_card
from edgetune.cli.options import force_option, json_option, set_option

if TYPE_CHECKING:
    from edgetune.bundle.search import SearchResult
    from edgetune.recipe import Recipe
    from edgetune.run_dir import RunDir


@click.command(
    "export-best", epilog="Example: edgetune export-best runs/quickstart --set 'budget.device_memory=\"48 MiB\"'"
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "--output-dir", type=click.Path(path_type=Path), help="Bundle folder.  [default: RUN/bundle]"
)
@set_option
@force_option
@json_option
def command(run: Path, *, out: Path | None, overrides: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Search for the int4 bundle of a run that loses least within [budget], and export it as `edgetune export` does.

    Block sizes, symmetry, method, head bits and int8 layers are swept without training; what no other candidate beats
    in loss and bytes is measured as a bundle. Writes RUN/results/search.json and search.png.
    """
    from edgetune.bundle.export import export
    from edgetune.errors import RecipeError
    from edgetune.lock import only_process
    from edgetune.recipe import as_toml
    from edgetune.run_dir import RunDir

    run_dir, progress = RunDir(run), console.ProgressLine()
    if not run_dir.recipe.is_file():
        raise RecipeError(f"{run}: is no run folder, whose eval rows would decide", cure="give a run folder")
    console.work_in(run)
    try:
        found = _search(recipe_of(run_dir, overrides), run_dir, out, force=force, progress=progress)
        chosen = [f"export.{key}={as_toml(value)}" for key, value in found.chosen.settings.items()]
        with only_process(run_dir):
            recipe = recipe_of(run_dir, [*overrides, *chosen])
            result = export(recipe, run_dir, out=out, force=force, progress=progress)
        write_card(run, result.bundle.path, progress)
    finally:
        progress.close()
    show(result, run, as_json=as_json, found=found)


def _search(recipe: Recipe, run_dir: RunDir, out: Path | None, *, force: bool, progress: Any) -> SearchResult:
    """Sweep the run's merged decoder; also draws results/search.png."""
    from edgetune.bundle.export import refuse_early
    from edgetune.bundle.task import TASKS
    from edgetune.errors import RecipeError
    from edgetune.lock import only_process
    from edgetune.report.frontier import draw_frontier
    from edgetune.search_run import search

    if not TASKS[recipe.model.task].IS_DECODER or recipe.export.precision != "int4":
        raise RecipeError(
            f"{run_dir.path}: the search is for int4 bundles of decoders",
            cure='use `edgetune export`, or set export.precision="int4"',
        )
    refuse_early(recipe, run_dir, out, force=force)
    with only_process(run_dir):
        found: SearchResult = search(recipe, run_dir, progress=progress)
    draw_frontier(
        [(point.size_bytes, point.loss, point.on_front, point == found.chosen) for point in found.points],
        run_dir.results / "search.png",
        title=recipe.name,
    )
    return found
