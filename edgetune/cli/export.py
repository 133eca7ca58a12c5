"""`edgetune export`: the merged model of a run becomes a verified bundle. The work is in export/export.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, set_option

if TYPE_CHECKING:
    from edgetune.export.export import ExportResult


@click.command("export", epilog="Example: edgetune export runs/quickstart --precision int4 --block-size 128")
@click.argument("run", metavar="RUN_OR_MERGED", type=click.Path(path_type=Path))
@click.option("--data", help="Rows to verify a merged folder on; a run has its own.")
@click.option("--precision", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="In place of the recipe's.")
@click.option("--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), help="In place of the recipe's.")
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Bundle folder.  [default: RUN/bundle, MERGED-bundle, or with --keep-adapter RUN/adapter-bundle]",
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
    if into is not None and (out is not None or precision or block_size):
        raise click.UsageError("--into adds to a bundle as it is: leave out --out, --precision and --block-size")
    changes = list(overrides)
    changes += [f"export.precision={precision!r}"] if precision else []
    changes += [f"export.block_size={block_size}"] if block_size else []
    progress = console.ProgressLine()
    try:
        if keep_adapter:
            _refuse_data(run, data)
            result = _keep_adapter(run, changes, out=out, into=into, name=adapter_name, force=force, progress=progress)
        else:
            result = _export(run, data, changes, out=out, force=force, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.say_json(
            {
                "bundle": str(result.bundle.path),
                "adapters": list(result.bundle.adapters),
                "precision": result.bundle.precision,
                "size_bytes": result.size_bytes,
                "peak_bytes": result.peak_bytes,
                "wall_s": round(result.wall_s, 3),
                "verified": {
                    "passed": True,
                    "checks": [dataclasses.asdict(item) for item in result.verification.checks],
                },
            }
        )
        return
    for check in result.verification.checks:
        mark = "ok  " if check.passed else "note"
        console.say(f"{mark} {check.name}: {check.value:.3g}, limit {check.limit:.3g} ({check.detail})")
    console.say(
        f"{result.bundle.path}  {result.bundle.precision}  {result.size_bytes / 1024**2:,.1f} MiB"
        f"  (peak memory {result.peak_bytes / 1024**2:,.0f} MiB, {result.wall_s:.1f} s)"
    )


def _export(
    source: Path, data: str | None, changes: list[str], *, out: Path | None, force: bool, progress: Any
) -> ExportResult:
    """Export a run as its recipe says, or a merged folder that lies in none with the rows in `data`."""
    from itertools import islice

    from edgetune.data.prepare import examples
    from edgetune.errors import RecipeError, RunError
    from edgetune.export.export import export, export_classifier, export_folder, prompts_of
    from edgetune.export.verify import MOST_PROMPTS
    from edgetune.files import beside
    from edgetune.model.classifier import SPEC, read_spec
    from edgetune.recipe import load_recipe, parse_recipe
    from edgetune.run_dir import RunDir

    run_dir = RunDir(source)
    if run_dir.recipe.is_file() or not (source / "config.json").is_file():
        _refuse_data(source, data)
        if not run_dir.recipe.is_file():
            raise RunError(f"{source}: is no run folder and no merged model", cure=_cure(source))
        console.work_in(source)
        return export(load_recipe(run_dir.recipe, changes), run_dir, out=out, force=force, progress=progress)
    if data is None:
        raise RecipeError(f"{source}: has no recipe that names rows to verify on", cure="give rows with --data")
    out = out or beside(source, "-bundle")
    if out.exists() and not force:
        raise RunError(f"{out}: is there already", cure="choose another folder with --out, or replace it with --force")
    spec = read_spec(source) if (source / SPEC).is_file() else None
    text = f"[model]\nbase = {json.dumps(str(source))}\n"
    text += f'task = "{"classification" if spec else "generation"}"\n[data]\ntrain = {json.dumps(data)}\n'
    recipe = parse_recipe(text, source=str(source), name=source.resolve().name, overrides=changes)
    if spec:
        outside = spec.out_of_scope_label or recipe.classify.out_of_scope_label
        recipe = recipe.with_classify(multi_label=spec.multi_label, out_of_scope_label=outside)
        return export_classifier(source, out, recipe, progress=progress)
    prompts = prompts_of(islice(examples(recipe, "train"), MOST_PROMPTS))
    return export_folder(source, out, recipe, prompts=prompts, progress=progress)


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
    from edgetune.errors import RecipeError, RunError
    from edgetune.export.keep_adapter import add_adapter, export_keeping_adapter
    from edgetune.model.base import resolve_base
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    run_dir = RunDir(source)
    if not run_dir.recipe.is_file():
        raise RunError(f"{source}: is no run folder", cure="--keep-adapter wants one, with its adapter and its rows")
    console.work_in(source)
    recipe = load_recipe(run_dir.recipe, changes)
    if recipe.is_classifier:
        raise RecipeError(
            f"--keep-adapter: {source} is a classifier's run", cure="leave it out; a classifier is merged"
        )
    model = recipe.model
    base = resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code)
    if into is not None:
        return add_adapter(recipe, run_dir, base, into, name=name, force=force, progress=progress)
    return export_keeping_adapter(recipe, run_dir, base, out=out, name=name, force=force, progress=progress)


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
