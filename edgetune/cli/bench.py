"""`edgetune bench`: what each target is worth and costs on this machine. The work is in bench/."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, set_option
from edgetune.metric_names import TEXT_METRICS

TASKS = (*TEXT_METRICS, "perplexity")
HARNESS = "lm-eval:"


def _task(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A name that there is. Raises BadParameter."""
    if value is None or value.startswith(HARNESS):
        return value
    if (name := value.replace("-", "_")) not in TASKS:
        raise click.BadParameter(f"{value!r} is none of {', '.join(TASKS)}, lm-eval:NAME", param=option)
    return name


@click.command("bench", epilog="Example: edgetune bench runs/quickstart/bundle edgetune:nano --data my-rows.jsonl")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--data", help="Rows to score on.  [default: a run's own test rows; elsewhere no scores]")
@click.option(
    "--task", metavar="NAME", callback=_task, help=f"{', '.join(TASKS)}, or lm-eval:NAME.  [default: the run's metric]"
)
@click.option("--tasks-from", help="Folder with task files of your own for --task lm-eval:NAME.")
@click.option("--shots", type=click.IntRange(min=0), help="Examples before each question of a task of lm-eval.")
@click.option("--apply-chat-template", is_flag=True, help="Questions of lm-eval go through the chat template.")
@click.option("--check", help="Python file with `def check(answer, row) -> bool`; the task is check then.")
@click.option("--max-rows", type=click.IntRange(min=1), help="Score this many rows only, drawn by the recipe's seed.")
@click.option("--reference", help="Target whose probabilities the KL is to.  [default: a fine-tune, else the first]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads, pinned.  [default: the physical cores]")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Fresh processes a number.")
@set_option
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Keep the report as JSON.")
@json_option
def command(
    targets: tuple[str, ...],
    *,
    data: str | None,
    task: str | None,
    tasks_from: str | None,
    shots: int | None,
    apply_chat_template: bool,
    check: str | None,
    max_rows: int | None,
    reference: str | None,
    threads: int | None,
    repeats: int,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure each TARGET: a run folder (all it holds), adapter, model folder or hub id, bundle, or .gguf file.

    Score, loss, KL, bytes, load time, memory, speed and energy, each in fresh processes on pinned cores, with the noise
    between them. What a target cannot give is shown as absent, with the reason.
    """
    from edgetune.bench.bench import bench
    from edgetune.bench.cores import default_threads
    from edgetune.bench.settings import HarnessTask, Settings
    from edgetune.bench.table import plain
    from edgetune.files import write_json

    if check:
        task = "check"
    harness = None
    if task and task.startswith(HARNESS):
        name = task.removeprefix(HARNESS)
        harness = HarnessTask(name, tasks_from, limit=max_rows, shots=shots, is_chat=apply_chat_template)
    given = {
        "data.test": data,
        "evaluate.metric": "loss" if harness or task == "perplexity" else task,
        "evaluate.check": check,
        "evaluate.max_rows": max_rows,
    }
    options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    settings = Settings(threads=threads or default_threads(), repeats=repeats)
    with console.ProgressLine() as progress:
        asked = [*options, *overrides]
        report = bench(targets, settings, overrides=asked, reference=reference, task=harness, progress=progress)
    if out:
        write_json(out, report)
    if as_json:
        console.say_json(report)
    else:
        console.say(plain(report))
    console.note(
        f"median of {settings.repeats} processes, ± half the distance between the least and the most of their medians; "
        f"{settings.threads} threads" + (f"; kept in {out}" if out else "")
    )
