"""`edgetune run`: a recipe through all stages. The work is in pipeline.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli import console
from edgetune.cli.jointly import only_main, together
from edgetune.cli.options import force_option, json_option, out_option, read_recipe, recipe_argument, set_option
from edgetune.cli.scores import check_line, describe, result_lines
from edgetune.launch import launched

if TYPE_CHECKING:
    from edgetune.pipeline import RunResult


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
    from edgetune.pipeline import run
    from edgetune.run_dir import RunDir
    from edgetune.verify_run import refuse_lost_gain

    with together():
        loaded = read_recipe(recipe, overrides)
        run_dir = RunDir(out or Path("runs") / loaded.name)
        console.work_in(run_dir.path)
        with console.ProgressLine() as progress, only_main(run_dir):
            result = run(loaded, run_dir, force=force, progress=progress)
        if launched().is_main:
            show(result, loaded.model.task, as_json=as_json)
            refuse_lost_gain(run_dir, result.summary["survival"])


def show(result: RunResult, task: str, *, as_json: bool) -> None:
    """The table, or the whole summary, on stdout; what is to be said about it on stderr."""
    from edgetune.report.task import TASKS

    details = result.summary.get(task)
    if as_json:
        console.say_json(result.summary)
    else:
        console.say(result.table)
        if details:
            for line in result_lines("bundle", {"classes": details, "rejection": details["rejection"]}):
                console.say(line)
    if folds := result.summary["folds"]:
        console.note(f"cross-validated, base and adapter: {folds['summary']}")
    console.note(describe(result.summary, details))
    for check in result.summary["verification"]:
        if not check["passed"]:
            console.note(check_line(check))
    console.note(f"\n{result.ledger}\n")
    console.note(result.summary["survival"]["verdict"])
    for line in result.summary["over_budget"]:
        console.note(f"over budget: {line}")
    stages = sorted(result.summary["stage_s"].items(), key=lambda stage: -stage[1])
    console.note("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages))
    minutes, seconds = divmod(round(result.summary["wall_s"]), 60)
    console.note(
        f"{minutes}:{seconds:02d} minutes, at most {result.summary['peak_bytes'] / 1024**2:,.0f} MiB; "
        f"the bundle is {result.run_dir.bundle}; next: edgetune {TASKS[task].try_verb} {result.run_dir.bundle}"
    )
