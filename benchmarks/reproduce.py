"""Measures again what benchmarks/results holds, on this machine, one script after the other: `make benchmark`.

    python -m benchmarks.reproduce                 # within an hour, fewer rounds and seeds
    python -m benchmarks.reproduce --list          # what would be run, and what is done
    python -m benchmarks.reproduce --only decode   # one of them
    python -m benchmarks.reproduce --full --minutes 600

WORK keeps what is done: a call that was stopped, or whose time was up, goes on there. A result of another commit or of
other settings is measured again. Nothing is written outside WORK; its README.md is benchmarks/README.md with the
results of this machine. What needs a GPU or more
than one command is not here: see benchmarks/gpu.py and benchmarks/tune.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from benchmarks.readme import REPOSITORY, fill
from edgetune.files import read_json, write_json, write_text
from edgetune.provenance import provenance

Outcome = Literal["done", "failed", "left out", "not begun", "stopped"]
ABSENT = "Not measured on this machine."
STOP_S = 30
"""What a script has for its end, once it was told to stop."""


@dataclass(frozen=True)
class Step:
    """One result, and the command that measures it."""

    name: str
    """Of results/NAME.json."""
    module: str
    settings: tuple[str, ...] = ()
    """After `python -m module`; {work} is the folder that is kept. The result's place is added: `out`."""
    full: tuple[str, ...] | None = None
    """The settings for --full, where they are others."""
    after: tuple[str, ...] = ()
    """Results that have to be there."""
    needs_data: bool = False
    """It reads $EDGETUNE_DATA."""
    summary: str = ""
    """The file that holds the result, of a command that cannot be told where to write it."""
    is_full_only: bool = False

    def command(self, work: Path, *, is_full: bool) -> list[str]:
        """The arguments after `python -m`."""
        settings = self.full if is_full and self.full is not None else self.settings
        found = [self.module, *(part.format(work=work) for part in settings)]
        return found if self.summary else [*found, "--out", str(result_of(work, self.name))]


def _run(recipe: str, **settings: Any) -> Step:
    return Step(
        recipe,
        "edgetune",
        ("run", f"recipes/{recipe}.toml", "-o", f"{{work}}/{recipe}"),
        summary=f"{{work}}/{recipe}/results/summary.json",
        **settings,
    )


BANKING77 = ("--work", "{work}/banking77")
STEPS = (
    _run("quickstart"),
    Step("agree", "benchmarks.agree", ("--run", "{work}/quickstart"), after=("quickstart",)),
    Step("int4_loss", "benchmarks.int4_loss", needs_data=True),
    Step("decode_nano", "benchmarks.decode", ("--merged", "{work}/quickstart/merged"), after=("quickstart",)),
    Step("decode", "benchmarks.decode", ("--rounds", "3"), full=()),
    Step(
        "keep_adapter",
        "benchmarks.keep_adapter",
        ("--run", "{work}/quickstart", "--rounds", "3"),
        full=("--run", "{work}/quickstart", "--rounds", "9"),
        after=("quickstart",),
    ),
    Step(
        "train_throughput",
        "benchmarks.train_throughput",
        ("--rows", "768", "--rounds", "2"),
        full=("--rows", "768"),
        needs_data=True,
    ),
    Step(
        "survival",
        "benchmarks.survival",
        ("{work}/quickstart",),
        full=("{work}/nano-snips", "{work}/quickstart"),
        after=("quickstart",),
    ),
    Step(
        "classify_throughput",
        "benchmarks.classify_throughput",
        ("--rows", "500", "--epochs", "1", "--rounds", "1"),
        full=("--rows", "1000", "--epochs", "2", "--rounds", "2"),
        needs_data=True,
    ),
    Step(
        "banking77",
        "benchmarks.banking77",
        (*BANKING77, "--seeds", "1", "--few-shot-seeds", "1", "--shots", "5", "--shots", "0"),
        full=(*BANKING77, "--few-shot-seeds", "1"),
        needs_data=True,
    ),
    Step(
        "encoder_speed",
        "benchmarks.encoder_speed",
        ("--merged", "{work}/banking77/all-0/merged", "--rounds", "1"),
        after=("banking77",),
        needs_data=True,
    ),
    Step(
        "planner",
        "benchmarks.planner",
        ("--most", "8"),
        full=(),
    ),
    Step("fused_loss", "benchmarks.fused_loss"),
    Step("side_by_side", "benchmarks.side_by_side", ("--rounds", "1", "--most", "1"), full=()),
    Step(
        "sms_spam",
        "benchmarks.sms_spam",
        ("--work", "{work}/sms-spam", "--seeds", "1"),
        needs_data=True,
        is_full_only=True,
    ),
    _run("nano-snips", needs_data=True, is_full_only=True),
    Step("busy", "benchmarks.busy", is_full_only=True),
    Step("repair", "benchmarks.repair", ("{work}/quickstart",), after=("quickstart",), is_full_only=True),
    Step("methods", "benchmarks.methods", ("{work}/nano-snips",), after=("nano-snips",), is_full_only=True),
)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/benchmark"), show_default=True)
@click.option(
    "--minutes", default=60.0, show_default=True, help="When to end; what is left goes on with the next call."
)
@click.option("--full", is_flag=True, help="All rounds, seeds and recipes of the published results: many hours.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this one, anew; may be repeated.")
@click.option("--list", "is_list", is_flag=True, help="Measure nothing; show the commands and what is done.")
def main(work: Path, minutes: float, full: bool, only: tuple[str, ...], is_list: bool) -> None:
    """Measure what is not there yet. Exit code 1 if a measurement failed."""
    if unknown := set(only) - {step.name for step in STEPS}:
        raise click.UsageError(f"no such results: {', '.join(sorted(unknown))}; see --list")
    chosen = [step for step in STEPS if (step.name in only if only else full or not step.is_full_only)]
    if is_list:
        for step in chosen:
            state = "done" if is_done(step, work, is_full=full) else "to do"
            click.echo(f"{state:5}  {step.name:20} python -m {' '.join(step.command(work, is_full=full))}")
        return
    outcomes = measure(chosen, work, is_full=full, until=time.monotonic() + 60 * minutes, anew=only)
    page = write_page(work)
    for name, outcome in outcomes.items():
        click.echo(f"{outcome:9}  {name}")
    click.echo(f"{page}")
    if "failed" in outcomes.values():
        raise SystemExit(1)


def measure(
    steps: Sequence[Step], work: Path, *, is_full: bool, until: float, anew: Sequence[str] = ()
) -> Mapping[str, Outcome]:
    """Run the steps that are not done, in their order, until time.monotonic() is `until`; how each ended."""
    outcomes: dict[str, Outcome] = {}
    for step in steps:
        if step.name not in anew and is_done(step, work, is_full=is_full):
            outcomes[step.name] = "done"
        elif lacking := _lacking(step, work):
            click.echo(f"{step.name}: left out: {lacking}", err=True)
            outcomes[step.name] = "left out"
        elif time.monotonic() >= until:
            outcomes[step.name] = "not begun"
        else:
            outcomes[step.name] = _measure_one(step, work, is_full=is_full, until=until)
    return outcomes


def result_of(work: Path, name: str) -> Path:
    """Where a result is kept."""
    return work / "results" / f"{name}.json"


def is_done(step: Step, work: Path, *, is_full: bool) -> bool:
    """Whether the result is there, and is that of this commit and these settings."""
    record = _record(work, step)
    if not (record.exists() and result_of(work, step.name).exists()):
        return False
    found = read_json(record)
    return {key: found.get(key) for key in ("command", "commit")} == _asked(step, work, is_full=is_full)


def write_page(work: Path) -> Path:
    """benchmarks/README.md with the results of this machine; without pictures, which are of the published ones."""
    text = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^!\[.*\]\(.*\)\n\n?", "", text)
    write_text(work / "README.md", fill(text, work / "results", absent=ABSENT))
    return work / "README.md"


def _record(work: Path, step: Step) -> Path:
    return work / "steps" / f"{step.name}.json"


def _asked(step: Step, work: Path, *, is_full: bool) -> dict[str, Any]:
    return {"command": step.command(work, is_full=is_full), "commit": provenance()["commit"]}


def _lacking(step: Step, work: Path) -> str:
    """Why a step cannot be run; empty if it can."""
    missing = [name for name in step.after if not result_of(work, name).exists()]
    if missing:
        return f"needs {', '.join(missing)}"
    return "needs EDGETUNE_DATA, the folder of the data sets" if step.needs_data and not _data() else ""


def _data() -> str:
    return os.environ.get("EDGETUNE_DATA", "")


def _measure_one(step: Step, work: Path, *, is_full: bool, until: float) -> Outcome:
    log, out, asked = (
        work / "logs" / f"{step.name}.log",
        result_of(work, step.name),
        _asked(step, work, is_full=is_full),
    )
    for folder in (log.parent, out.parent, _record(work, step).parent):
        folder.mkdir(parents=True, exist_ok=True)
    _record(work, step).unlink(missing_ok=True)
    click.echo(f"{step.name}: python -m {' '.join(asked['command'])} > {log}", err=True)
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        code = _call([sys.executable, "-m", *asked["command"]], file, until)
    if code is None:
        click.echo(f"{step.name}: stopped, the time is up; the next call goes on", err=True)
        return "stopped"
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing was said"]
        click.echo(f"{step.name}: failed with exit code {code}: {lines[-1]} (see {log})", err=True)
        return "failed"
    if step.summary:
        shutil.copyfile(step.summary.format(work=work), out)
    write_json(_record(work, step), {**asked, "wall_s": round(time.monotonic() - begun, 1)})
    return "done"


def _call(command: Sequence[str], output: Any, until: float) -> int | None:
    """The exit code; None if it was told to stop because the time is up. It leaves no process behind."""
    process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        return process.wait(timeout=max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and the processes that it started; EdgeTune's runs save where they are."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
