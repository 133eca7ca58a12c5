"""`edgetune evaluate`: score a run, adapter, model folder or bundle. The work is in evaluate/."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, set_option
from edgetune.cli.scores import describe, result_lines
from edgetune.metric_names import METRIC_NAMES


@click.command("evaluate", epilog="Example: edgetune evaluate runs/quickstart/bundle --data my-rows.jsonl")
@click.argument("target")
@click.option("--data", help="Rows to score on.  [default: the run's own test rows]")
@click.option(
    "--metric",
    type=click.Choice(list(METRIC_NAMES)),
    help="What counts as right.  [default: the run's]",
)
@click.option("--max-rows", type=click.IntRange(min=1), help="Score this many rows only, drawn by the recipe's seed.")
@set_option
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Folder for scores and answers.  [default: the run's results/evaluate, else ./results]",
)
@json_option
def command(
    target: str,
    *,
    data: str | None,
    metric: str | None,
    max_rows: int | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Score TARGET: a run folder (all it holds), an adapter, a model folder or hub id, a bundle, or a .gguf file.

    Prints one table; keeps every answer in <out>/<target>-answers.jsonl. Outside a run folder --data is needed.
    """
    from edgetune.evaluate.by_path import evaluate_path
    from edgetune.run_dir import find_run

    if run_dir := find_run(Path(target)):
        console.work_in(run_dir.path)
    given = {"data.test": data, "evaluate.metric": metric, "evaluate.max_rows": max_rows}
    options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    with console.ProgressLine() as progress:
        result = evaluate_path(target, overrides=[*options, *overrides], out=out, progress=progress)
    if as_json:
        console.say_json(result.summary)
    else:
        console.say(result.table)
        for found in result.summary["results"]:
            for line in result_lines(found["target"]["name"], found["score"]):
                console.say(line)
    console.note(describe(result.summary, result.summary["results"][-1]["score"]))
    console.note(f"answers: {result.out}")
