"""`edgetune verify`: how much of the fine-tune is in the bundle. The work is in verify_run.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, set_option

SHOWN_LAYERS = 5


@click.command("verify", epilog="Example: edgetune verify runs/quickstart/bundle")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--data", help="Rows to measure on.  [default: the run's own test rows]")
@click.option(
    "--min-gain-kept", type=click.FloatRange(0, 1), help="Least share of the gain.  [default: the recipe's, 0.97]"
)
@click.option("--force", is_flag=True, help="Accept a bundle that is refused; it is recorded in the bundle.")
@set_option
@json_option
def command(
    bundle: Path,
    data: str | None,
    min_gain_kept: float | None,
    force: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure base, fine-tune and BUNDLE on the same rows: what share of the gain has come through?

    BUNDLE lies in its run folder, which has the rest. Exits 5 if less is left than export.min_gain_kept, and marks the
    bundle as not verified.
    """
    from edgetune.errors import CheckError, RunError
    from edgetune.lock import only_process
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir, find_run
    from edgetune.verify_run import verify

    run_dir = find_run(bundle)
    if run_dir is None or bundle.resolve() not in (run_dir.path.resolve(), run_dir.bundle.resolve()):
        raise RunError(
            f"{bundle}: is no bundle in a run folder, which has the base and the fine-tune to compare with",
            cure="give RUN/bundle; `edgetune evaluate` scores a bundle alone",
        )
    run_dir = RunDir(run_dir.path)
    console.work_in(run_dir.path)
    given = {"data.test": data, "export.min_gain_kept": min_gain_kept}
    options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    progress = console.ProgressLine()
    found: Mapping[str, Any] | None = None
    try:
        recipe = load_recipe(run_dir.recipe, [*options, *overrides])
        with only_process(run_dir):
            found = verify(recipe, run_dir, force=force, progress=progress)
    except CheckError:
        if as_json and (run_dir.results / "verify" / "survival.json").exists():
            console.say_json(_read(run_dir))
        raise
    finally:
        progress.close()
    whole = _read(run_dir)
    if as_json:
        console.say_json(whole)
        return
    for line in survival_lines(whole):
        console.say(line)
    if found["accepted"]:
        console.note("accepted with --force; the bundle says so")


def _read(run_dir: Any) -> dict[str, Any]:
    from edgetune.files import read_json

    return read_json(run_dir.results / "verify" / "survival.json")


def survival_lines(survival: Mapping[str, Any]) -> list[str]:
    """The verdict, and the matrices whose change came through worst, for people."""
    lines = [survival["verdict"]]
    layers = sorted(survival["layers"], key=lambda layer: layer["correlation"])
    if layers:
        lines.append(f"{len(layers)} matrices changed; the change came through least in:")
    for layer in layers[:SHOWN_LAYERS]:
        lines.append(
            f"  {layer['name']}: correlation {layer['correlation']:.2f}, norm ratio {layer['norm_ratio']:.2f}, "
            f"{layer['codes_changed']:.0%} of the integers changed"
        )
    return lines
