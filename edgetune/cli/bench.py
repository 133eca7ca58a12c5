"""`edgetune bench`: what each target is worth and costs on this machine. The work is in bench/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, set_option
from edgetune.errors import CheckError
from edgetune.metric_names import TEXT_METRICS

if TYPE_CHECKING:
    from edgetune.bench.settings import Settings

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
@click.option("--against", type=click.Path(path_type=Path), help="Earlier report: is each figure still as it was?")
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
    against: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure each TARGET: a run folder (all it holds), adapter, model folder or hub id, bundle, or .gguf file.

    Score, loss, KL, bytes, load time, memory, speed and energy, each in fresh processes on pinned cores, with the noise
    between them. What a target cannot give is shown as absent, with the reason. With --out the answers are kept in a
    folder beside it.

    Exit codes: that of the first target that could not be measured (2, 3, 4; 1 if its process died), the others being
    measured all the same; else 5 if --against finds a figure worse by more than the noise.
    """
    from edgetune.bench.against import compare_with, read_before
    from edgetune.bench.bench import bench
    from edgetune.bench.cores import default_threads
    from edgetune.bench.settings import HarnessTask, Settings
    from edgetune.files import write_json

    task, harness = "check" if check else task, None
    if task and task.startswith(HARNESS):
        harness = HarnessTask(task.removeprefix(HARNESS), tasks_from, max_rows, shots, apply_chat_template)
    given = {
        "data.test": data,
        "evaluate.metric": "loss" if harness or task == "perplexity" else task,
        "evaluate.check": check,
        "evaluate.max_rows": max_rows,
    }
    options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    settings = Settings(threads=threads or default_threads(), repeats=repeats)
    before = read_before(against) if against else None
    with console.ProgressLine() as progress:
        asked: dict[str, Any] = {"overrides": [*options, *overrides], "reference": reference, "task": harness}
        kept = out.with_name(f"{out.stem}-answers") if out else None
        report = bench(targets, settings, **asked, answers=kept, progress=progress)
    if before and against:
        report["against"] = compare_with(before, report, against)
    if out:
        write_json(out, report)
    _show(report, as_json)
    _end(report, settings, out)


def _show(report: Mapping[str, Any], as_json: bool) -> None:
    """The tables, or the one document."""
    if as_json:
        console.say_json(report)
        return
    from edgetune.bench.against import lines
    from edgetune.bench.table import plain

    console.say(plain(report))
    if "against" in report:
        console.say("\n".join(["", *lines(report["against"])]))


def _end(report: Mapping[str, Any], settings: Settings, out: Path | None) -> None:
    """Say how it was measured and what was wrong; exit with the code of that."""
    console.note(
        f"median of {settings.repeats} processes, ± half the distance between the least and the most of their medians; "
        f"{settings.threads} threads" + (f"; kept in {out}" if out else "")
    )
    left_out = report["left_out"]
    worse = report["against"]["counts"]["worse"] if "against" in report else 0
    if worse:
        console.note(f"edgetune: {worse} figures are worse than in {report['against']['file']}")
    if left_out:
        names = ", ".join(item["target"] for item in left_out)
        console.note(f"edgetune: left out, as they could not be measured: {names}")
    if code := left_out[0]["exit_code"] if left_out else CheckError.exit_code if worse else 0:
        click.get_current_context().exit(code)
