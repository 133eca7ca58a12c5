"""`edgetune run`: a recipe through all stages. The work is in pipeline.py."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, out_option, recipe_argument, set_option
from edgetune.cli.scores import describe, result_lines


@click.command("run", epilog="Example: edgetune run recipes/quickstart.toml")
@recipe_argument
@set_option
@out_option
@force_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """Train, evaluate, merge, export and verify; prints one table.

    Stages that are up to date in the run folder are skipped, so a stopped run goes on where it was.
    """
    from edgetune.lock import only_process
    from edgetune.pipeline import refuse_lost_gain, run
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir

    loaded = load_recipe(recipe, overrides)
    run_dir = RunDir(out or Path("runs") / loaded.name)
    console.work_in(run_dir.path)
    progress = console.ProgressLine()
    try:
        with only_process(run_dir):
            result = run(loaded, run_dir, force=force, progress=progress)
    finally:
        progress.close()
    labels = result.summary.get("classification")
    if as_json:
        console.say_json(result.summary)
    else:
        console.say(result.table)
        if labels:
            for line in result_lines("bundle", {"classes": labels, "rejection": labels["rejection"]}):
                console.say(line)
    console.note(describe(result.summary, labels))
    console.note(f"\n{result.ledger}\n")
    console.note(result.summary["survival"]["verdict"])
    for line in result.summary["over_budget"]:
        console.note(f"over budget: {line}")
    stages = sorted(result.summary["stage_s"].items(), key=lambda stage: -stage[1])
    console.note("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages))
    verb = "classify" if loaded.is_classifier else "chat"
    minutes, seconds = divmod(round(result.summary["wall_s"]), 60)
    console.note(
        f"{minutes}:{seconds:02d} minutes, at most {result.summary['peak_bytes'] / 1024**2:,.0f} MiB; "
        f"the bundle is {run_dir.bundle}; next: edgetune {verb} {run_dir.bundle}"
    )
    refuse_lost_gain(run_dir, result.summary["survival"])
