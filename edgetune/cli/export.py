"""`edgetune export`: the merged model of a run becomes a verified bundle. The work is in export/export.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, set_option


@click.command("export", epilog="Example: edgetune export runs/quickstart --precision int4 --block-size 128")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="In place of the recipe's.")
@click.option("--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), help="In place of the recipe's.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder.  [default: RUN/bundle]")
@set_option
@force_option
@json_option
def command(
    run: Path,
    precision: str | None,
    block_size: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export the merged model in RUN as an ONNX bundle and verify it on the recipe's rows.

    Exits 5 if the verification fails; what was built is then left aside as RUN/bundle.failed.
    """
    from edgetune.export.export import export
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    changes = list(overrides)
    changes += [f"export.precision={precision!r}"] if precision else []
    changes += [f"export.block_size={block_size}"] if block_size else []
    run_dir = RunDir(run)
    recipe = load_recipe(run_dir.recipe, changes)
    progress = console.ProgressLine()
    result = export(recipe, run_dir, out=out, force=force, progress=progress)
    progress.close()
    if as_json:
        console.say_json(
            {
                "bundle": str(result.bundle.path),
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
