"""`edgetune export-adapter`: a bundle of the base with the adapter beside it, made by bundle/adapter_bundle.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.exported import show, write_card
from edgetune.cli.options import force_option, json_option, set_option

if TYPE_CHECKING:
    from edgetune.bundle.place import ExportResult


@click.command("export-adapter", epilog="Example: edgetune export-adapter runs/second --into runs/first/adapter-bundle")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "--output-dir", type=click.Path(path_type=Path), help="Bundle folder.  [default: RUN/adapter-bundle]"
)
@click.option(
    "--into",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Write the adapter only, into a bundle that this verb has made of the same base.",
)
@click.option("--name", help="Of the adapter in the bundle.  [default: the run folder's]")
@set_option
@force_option
@json_option
def command(
    run: Path,
    *,
    out: Path | None,
    into: Path | None,
    name: str | None,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export a run's base as an ONNX bundle with the run's adapter as a file of its own, which can be replaced.

    Nothing is merged: the bundle holds the base once, and adapters of later runs are added to it with --into. Both are
    verified on the recipe's rows; exits 5 if that fails. Decoding is slower than from a merged bundle.
    """
    if into is not None and out is not None:
        raise click.UsageError("--into adds to a bundle as it is: leave out --out")
    progress = console.ProgressLine()
    try:
        result = _export(run, overrides, out=out, into=into, name=name, force=force, progress=progress)
        write_card(run, result.bundle.path, progress)
    finally:
        progress.close()
    show(result, run, as_json=as_json)


def _export(
    source: Path,
    changes: Iterable[str],
    *,
    out: Path | None,
    into: Path | None,
    name: str | None,
    force: bool,
    progress: Any,
) -> ExportResult:
    """Export a run's base with its adapter beside it, or its adapter into a bundle of that base."""
    from edgetune.bundle.adapter_bundle import add_adapter, export_adapter
    from edgetune.bundle.task import TASKS
    from edgetune.errors import RecipeError, RunError
    from edgetune.lock import only_process
    from edgetune.model.base import resolve_base
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    run_dir = RunDir(source)
    if not run_dir.recipe.is_file():
        raise RunError(f"{source}: is no run folder", cure="give one, with its adapter and its rows")
    console.work_in(source)
    recipe = load_recipe(run_dir.recipe, changes)
    task = TASKS[recipe.model.task]
    if not task.IS_DECODER:
        cure = f"use `edgetune merge` and `edgetune export`: a {task.KIND} is merged"
        raise RecipeError(f"{source}: is a {task.KIND}'s run", cure=cure)
    model = recipe.model
    base = resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code)
    with only_process(run_dir):
        if into is not None:
            return add_adapter(recipe, run_dir, base, into, name=name, force=force, progress=progress)
        return export_adapter(recipe, run_dir, base, out=out, name=name, force=force, progress=progress)
