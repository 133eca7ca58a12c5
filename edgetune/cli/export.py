"""`edgetune export`: the merged model of a run becomes a verified bundle. The work is in bundle/export.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, set_option
from edgetune.cli.scores import check_line
from edgetune.precision_names import BlockSize, PrecisionName

if TYPE_CHECKING:
    from edgetune.bundle.place import ExportResult
    from edgetune.bundle.search import SearchResult
    from edgetune.recipe import Recipe
    from edgetune.run_dir import RunDir


@click.command("export", epilog="Example: edgetune export runs/quickstart --precision int4 --block-size 128")
@click.argument("run", metavar="RUN_OR_MERGED", type=click.Path(path_type=Path))
@click.option("--data", help="Rows to round, repair and verify a merged folder on; a run has its own.")
@click.option("--precision", type=click.Choice(get_args(PrecisionName)), help="In place of the recipe's.")
@click.option("--block-size", type=click.Choice([*map(str, get_args(BlockSize))]), help="In place of the recipe's.")
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Bundle folder.  [default: RUN/bundle, MERGED-bundle, or with --keep-adapter RUN/adapter-bundle]",
)
@click.option(
    "--search",
    is_flag=True,
    help="Of a run: sweep block size, symmetry, method, head bits and int8 layers first, and export what fits [budget] "
    "best.",
)
@click.option(
    "--keep-adapter",
    is_flag=True,
    help="Do not merge: a bundle of the base, with the adapter as a file of its own that can be replaced.",
)
@click.option(
    "--into",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="With --keep-adapter: write the adapter only, into a bundle made with --keep-adapter of the same base.",
)
@click.option("--adapter-name", help="With --keep-adapter: its name in the bundle.  [default: the run folder's]")
@set_option
@force_option
@json_option
def command(
    run: Path,
    data: str | None,
    precision: str | None,
    block_size: str | None,
    out: Path | None,
    search: bool,
    keep_adapter: bool,
    into: Path | None,
    adapter_name: str | None,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export the merged model of a run as an ONNX bundle and verify it on the recipe's rows.

    A folder that `edgetune merge` made of an adapter from elsewhere needs --data. Exits 5 if the verification fails;
    what was built is then left aside as <bundle>.failed.

    With --keep-adapter nothing is merged: the bundle holds the base once, and adapters of later runs are added to it
    with --into. Decoding is slower than from a merged bundle.
    """
    if not keep_adapter and (into is not None or adapter_name is not None):
        raise click.UsageError("--into and --adapter-name go with --keep-adapter")
    if keep_adapter and search:
        raise click.UsageError("--search is of a merged bundle: leave out --keep-adapter")
    if into is not None and (out is not None or precision or block_size):
        raise click.UsageError("--into adds to a bundle as it is: leave out --out, --precision and --block-size")
    changes = list(overrides)
    changes += [f"export.precision={precision!r}"] if precision else []
    changes += [f"export.block_size={block_size}"] if block_size else []
    progress, found = console.ProgressLine(), None
    try:
        if search:
            found = _search(run, changes, out, force, progress)
            changes += _as_changes(found)
        if keep_adapter:
            _refuse_data(run, data)
            result = _keep_adapter(run, changes, out=out, into=into, name=adapter_name, force=force, progress=progress)
        else:
            result = _export(run, data, changes, out=out, force=force, progress=progress)
        _write_card(run, result.bundle.path, progress)
    finally:
        progress.close()
    if as_json:
        console.say_json(_as_json(result, found))
    else:
        _show(result, found, is_of_run=result.bundle.path.resolve() == (run / "bundle").resolve())


def _as_json(result: ExportResult, found: SearchResult | None) -> dict[str, Any]:
    """The bundle, its proof, and the search that it came from."""
    return {
        "bundle": str(result.bundle.path),
        "adapters": list(result.bundle.adapters),
        "precision": result.bundle.precision,
        "size_bytes": result.size_bytes,
        "peak_bytes": result.peak_bytes,
        "wall_s": round(result.wall_s, 3),
        "search": dataclasses.asdict(found) if found else None,
        "verified": {
            "passed": True,
            "checks": [dataclasses.asdict(item) for item in result.verification.checks],
        },
    }


def _show(result: ExportResult, found: SearchResult | None, *, is_of_run: bool) -> None:
    """The same for people, and what is to be done next with the bundle of a run."""
    for line in _front(found) if found else []:
        console.say(line)
    for check in result.verification.checks:
        console.say(check_line(dataclasses.asdict(check)))
    if is_of_run and not result.bundle.adapters:
        console.note(f"how much of the fine-tune it kept is not measured yet: edgetune verify {result.bundle.path}")
    console.say(
        f"{result.bundle.path}  {result.bundle.precision}  {result.size_bytes / 1024**2:,.1f} MiB"
        f"  (peak memory {result.peak_bytes / 1024**2:,.0f} MiB, {result.wall_s:.1f} s)"
    )


def _search(source: Path, changes: list[str], out: Path | None, force: bool, progress: Any) -> SearchResult:
    """Sweep the run's merged decoder; also draws results/search.png."""
    from edgetune.bundle.export import refuse_early
    from edgetune.bundle.task import TASKS
    from edgetune.errors import RecipeError
    from edgetune.lock import only_process
    from edgetune.report.frontier import draw_frontier
    from edgetune.run_dir import RunDir
    from edgetune.search_run import search

    run_dir = RunDir(source)
    if not run_dir.recipe.is_file():
        raise RecipeError(
            f"--search: {source} is no run folder, whose eval rows would decide", cure="give a run folder"
        )
    console.work_in(source)
    recipe = _recipe(run_dir, changes)
    if not TASKS[recipe.model.task].IS_DECODER or recipe.export.precision != "int4":
        raise RecipeError(
            "--search: is for int4 bundles of decoders", cure='leave it out, or set export.precision="int4"'
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


def _recipe(run_dir: RunDir, changes: list[str]) -> Recipe:
    """The run's recipe with changes, called as the run is."""
    from edgetune.recipe import load_recipe

    return dataclasses.replace(load_recipe(run_dir.recipe, changes), name=run_dir.path.resolve().name)


def _front(found: SearchResult) -> list[str]:
    """The front as a table, and why the chosen one was chosen."""
    lines = [f"{'candidate':<46}{'MiB':>8}{'loss':>9}{'score':>8}{'tokens/s':>10}{'memory':>10}"]
    for point in sorted(found.points, key=lambda point: point.size_bytes):
        if point.peak_bytes is None:
            continue
        score = "-" if point.score is None else f"{point.score:.1%}"
        speed = "-" if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}"
        mark = "*" if point == found.chosen else " "
        lines.append(
            f"{mark + ' ' + point.name:<46}{point.size_bytes / 1024**2:>8.2f}{point.loss:>9.4f}{score:>8}{speed:>10}"
            f"{point.peak_bytes / 1024**2:>6,.0f} MiB"
        )
    return [*lines, f"chosen (*): {found.reason}", ""]


def _as_changes(found: SearchResult) -> list[str]:
    """What the search chose, as --set has it."""
    from edgetune.recipe import as_toml

    return [f"export.{key}={as_toml(value)}" for key, value in found.chosen.settings.items()]


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
        _refuse_data(source, data)
        if not run_dir.recipe.is_file():
            raise RunError(f"{source}: is no run folder and no merged model", cure=_cure(source))
        console.work_in(source)
        recipe = _recipe(run_dir, changes)
        with only_process(run_dir):
            return export(recipe, run_dir, out=out, force=force, progress=progress)
    if data is None:
        raise RecipeError(f"{source}: has no recipe that names rows to verify on", cure="give rows with --data")
    out = out or beside(source, "-bundle")
    if out.exists() and not force:
        raise RunError(f"{out}: is there already", cure="choose another folder with --out, or replace it with --force")
    return export_merged(source, out, data, changes, progress=progress)


def _keep_adapter(
    source: Path,
    changes: list[str],
    *,
    out: Path | None,
    into: Path | None,
    name: str | None,
    force: bool,
    progress: Any,
) -> ExportResult:
    """Export a run's base with its adapter beside it, or its adapter into a bundle of that base."""
    from edgetune.bundle.keep_adapter import add_adapter, export_keeping_adapter
    from edgetune.bundle.task import TASKS
    from edgetune.errors import RecipeError, RunError
    from edgetune.lock import only_process
    from edgetune.model.base import base_folder
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    run_dir = RunDir(source)
    if not run_dir.recipe.is_file():
        raise RunError(f"{source}: is no run folder", cure="--keep-adapter wants one, with its adapter and its rows")
    console.work_in(source)
    recipe = load_recipe(run_dir.recipe, changes)
    task = TASKS[recipe.model.task]
    if not task.IS_DECODER:
        raise RecipeError(
            f"--keep-adapter: {source} is a {task.KIND}'s run", cure=f"leave it out; a {task.KIND} is merged"
        )
    model = recipe.model
    base = base_folder(model)
    with only_process(run_dir):
        if into is not None:
            return add_adapter(recipe, run_dir, base, into, name=name, force=force, progress=progress)
        return export_keeping_adapter(recipe, run_dir, base, out=out, name=name, force=force, progress=progress)


def _write_card(source: Path, bundle: Path, progress: Any) -> None:
    """The bundle's README.md: of the run it lies in, else of the one it was made of."""
    from edgetune.report.card import write_bundle_card
    from edgetune.run_dir import RunDir, find_run

    made_of = RunDir(source) if RunDir(source).is_run else None
    write_bundle_card(bundle, find_run(bundle) or made_of, progress=progress)


def _refuse_data(source: Path, data: str | None) -> None:
    """Raises RecipeError for rows that a run has no use for."""
    from edgetune.errors import RecipeError

    if data is not None:
        raise RecipeError(f"--data: {source} is verified on the rows of its own recipe", cure="leave it out")


def _cure(source: Path) -> str:
    """What to export in place of a folder that is neither a run's nor a model's."""
    if (source / "adapter_config.json").is_file():
        return f"it is an adapter: `edgetune merge {source}` first, then export what it writes"
    return "give a run folder, or a folder that `edgetune merge` wrote"
