"""`edgetune export`: the merged model of a run becomes a verified bundle. The work is in bundle/export.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgetune.cli import console
from edgetune.cli.exported import recipe_of, show, write_card
from edgetune.cli.options import force_option, json_option, set_option
from edgetune.precision_names import PrecisionName

if TYPE_CHECKING:
    from edgetune.bundle.place import ExportResult

MOVED = {
    "--search": "`edgetune export-best RUN`",
    "--keep-adapter": "`edgetune export-adapter RUN`",
    "--into": "`edgetune export-adapter RUN --into BUNDLE`",
    "--adapter-name": "`edgetune export-adapter RUN --name NAME`",
    "--block-size": "`edgetune export RUN --set export.block_size=N`",
}
"""Options that this verb had: what says the same now."""


class _Export(click.Command):
    """The verb, which says where its former options have gone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        for word in args:
            option = word.partition("=")[0].replace("_", "-")
            if option in MOVED:
                raise click.UsageError(f"{option} is no option any more: it is {MOVED[option]}", ctx)
        return super().parse_args(ctx, args)


@click.command("export", cls=_Export, epilog="Example: edgetune export runs/quickstart --precision int8")
@click.argument("run", metavar="RUN_OR_MERGED", type=click.Path(path_type=Path))
@click.option("--data", help="Rows to round, repair and verify a merged folder on; a run has its own.")
@click.option("--precision", type=click.Choice(get_args(PrecisionName)), help="In place of the recipe's.")
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Bundle folder.  [default: RUN/bundle, or MERGED-bundle]",
)
@set_option
@force_option
@json_option
def command(
    run: Path,
    *,
    data: str | None,
    precision: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export the merged model of a run as an ONNX bundle and verify it on the recipe's rows.

    A folder that `edgetune merge` made of an adapter from elsewhere needs --data. Exits 5 if the verification fails;
    what was built is then left aside as <bundle>.failed.
    """
    changes = [*overrides, *([f"export.precision={precision!r}"] if precision else [])]
    progress = console.ProgressLine()
    try:
        result = _export(run, data, changes, out=out, force=force, progress=progress)
        write_card(run, result.bundle.path, progress)
    finally:
        progress.close()
    show(result, run, as_json=as_json)


def _export(
    source: Path, data: str | None, changes: list[str], *, out: Path | None, force: bool, progress: Any
) -> ExportResult:
    """Export a run as its recipe says, or a merged folder that lies in none with the rows in `data`."""
    from edgetune.bundle.export import export, export_merged
    from edgetune.errors import RecipeError, RunError
    from edgetune.files import beside
    from edgetune.lock import only_process
    from edgetune.run_dir import RunDir

    run_dir = RunDir(source)
    if run_dir.recipe.is_file() or not (source / "config.json").is_file():
        if data is not None:
            raise RecipeError(f"--data: {source} is verified on the rows of its own recipe", cure="leave it out")
        if not run_dir.recipe.is_file():
            raise RunError(f"{source}: is no run folder and no merged model", cure=_cure(source))
        console.work_in(source)
        recipe = recipe_of(run_dir, changes)
        with only_process(run_dir):
            return export(recipe, run_dir, out=out, force=force, progress=progress)
    if data is None:
        raise RecipeError(f"{source}: has no recipe that names rows to verify on", cure="give rows with --data")
    out = out or beside(source, "-bundle")
    if out.exists() and not force:
        raise RunError(f"{out}: is there already", cure="choose another folder with --out, or replace it with --force")
    return export_merged(source, out, data, changes, progress=progress)


def _cure(source: Path) -> str:
    """What to export in place of a folder that is neither a run's nor a model's."""
    if (source / "adapter_config.json").is_file():
        return f"it is an adapter: `edgetune merge {source}` first, then export what it writes"
    return "give a run folder, or a folder that `edgetune merge` wrote"
