"""`edgetune merge`: fold an adapter into its base. The work is in lora/merge.py."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal, cast

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option
from edgetune.progress import Progress

MERGE_BASES = ("trained", "original", "auto")


@click.command("merge", epilog="Example: edgetune merge runs/quickstart --base original --out quickstart-merged")
@click.argument("target", metavar="RUN_OR_ADAPTER", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Folder of the merged model.  [default: RUN/merged, or ADAPTER-merged]",
)
@click.option(
    "--base",
    "asked",
    metavar="[trained|original|auto|FOLDER]",
    help="Merge on the dequantised 4-bit base that was trained, on the 16-bit original, or (auto, of a run) on the one "
    "that loses less on its eval rows.  [default: the recipe's; original for an adapter made elsewhere]  Or the folder "
    "(or hub id) of the base, where the adapter names another place.",
)
@force_option
@json_option
def command(target: Path, out: Path | None, asked: str | None, force: bool, as_json: bool) -> None:
    """Fold the adapter of RUN_OR_ADAPTER into its base: a plain Hugging Face folder.

    The adapter may come from EdgeTune, PEFT, TRL or Unsloth. Memory: a few times the largest weight.
    """
    from edgetune.errors import RunError
    from edgetune.files import beside, refuse_to_replace
    from edgetune.lock import only_process
    from edgetune.lora.merge import is_merged, merge
    from edgetune.run_dir import RunDir

    merge_base, elsewhere = (asked, None) if asked in MERGE_BASES else (None, asked)
    adapter, base, default_base = _find(target, elsewhere)
    out = out or (target / "merged" if adapter != target else beside(target, "-merged"))
    refuse_to_replace(out, adapter, base, what="merged model", is_one=is_merged)
    if out.exists() and not force:
        raise RunError(f"{out}: is there already", cure="choose another folder with --out, or replace it with --force")
    lock = only_process(RunDir(target)) if adapter != target else contextlib.nullcontext()
    with console.ProgressLine() as progress, lock:
        chosen = _choose(target, base, merge_base or default_base, progress)
        result = merge(adapter, base, out, merge_base=chosen, progress=progress)
    if as_json:
        console.say_json({**dataclasses.asdict(result), "path": str(result.path), "wall_s": round(result.wall_s, 3)})
        return
    console.say(
        f"{result.path}  {result.merged_tensors} weights merged on the {result.merge_base} base, {result.dtype},"
        f" {result.size_bytes / 1024**2:,.1f} MiB, within {result.peft_difference:.0e} of PEFT's own layers"
        f"  (peak memory {result.peak_bytes / 1024**2:,.0f} MiB, {result.wall_s:.1f} s)"
    )


def _choose(target: Path, base: Path, merge_base: str, progress: Progress) -> Literal["trained", "original"]:
    """The base to merge on; of a run "auto" is measured."""
    from edgetune.errors import RecipeError
    from edgetune.pipeline import merge_base_of
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    if merge_base != "auto":
        return cast(Literal["trained", "original"], merge_base)
    run_dir = RunDir(target)
    if not run_dir.recipe.is_file():
        raise RecipeError(f"--base auto: {target} has no eval rows to measure on", cure="give a run folder")
    recipe = load_recipe(run_dir.recipe, ['export.merge_base="auto"'])
    return merge_base_of(recipe, run_dir, base, progress=progress)


def _find(target: Path, elsewhere: str | None) -> tuple[Path, Path, str]:
    """Adapter folder, base folder, and the base to merge on where none was asked for.

    `elsewhere`: where the base is, if not where the run or the adapter says.
    """
    from edgetune.errors import ModelError
    from edgetune.lora.read import is_adapter, named_base, read_adapter_config, read_record
    from edgetune.model.base import resolve_base
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    run_dir = RunDir(target)
    if run_dir.recipe.is_file():
        console.work_in(target)
        recipe = load_recipe(run_dir.recipe)
        model = recipe.model
        if not is_adapter(run_dir.adapter):
            raise ModelError(f"{target}: no adapter yet", cure=f"train one: edgetune train RECIPE --out {target}")
        base = resolve_base(elsewhere or model.base, model.revision, trust_remote_code=model.trust_remote_code)
        return run_dir.adapter, base, recipe.export.merge_base
    if not target.is_dir():
        raise ModelError(f"{target}: no such folder", cure="give a run folder or an adapter folder")
    config, record = read_adapter_config(target), read_record(target)
    kept = "trained" if record else "original"
    if elsewhere:
        return target, resolve_base(elsewhere), kept
    name, revision = named_base(config, record)
    cure = "say where its base is: edgetune merge ADAPTER --base FOLDER"
    if not name:
        raise ModelError(f"{target}: it does not name its base", cure=cure)
    try:
        return target, resolve_base(name, revision), kept
    except ModelError as error:
        raise ModelError(f"{target}: its base cannot be had: {error.message}", cure=cure) from None
