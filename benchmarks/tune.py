"""Searches against each other at equal budgets of training tokens, on nano-SNIPS and MiniLM-BANKING77.

    EDGETUNE_DATA=... python -m benchmarks.tune all --minutes 240           # what tells most first; goes on next time
    EDGETUNE_DATA=... python -m benchmarks.tune trainings --task nano-snips # one part of one task

trainings     a grid of learning rate and rank, trained for real, on few rows so that one core can do it
searches      `edgetune tune`'s own, over that table (tune_table.py), of every method and seed, and results/tune.png
tests         the recipe as it is and with the values that a search found, new seeds, as exported, on test rows that
              nothing else has seen
objectives    trials scored by each tune.score_of: do the cheap ones rank them as the exported models do?
populations   population-based training for real, for a table cannot stand for values that change: as many members as
              the smallest budget has trainings, their rank the recipe's

Each training and each search is kept in results/tune.json when it is done, with its commit. All parts go on where they
were stopped or killed, which costs the training under way at most.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from benchmarks.readme import RESULTS
from benchmarks.tune_parts import PARTS, Part
from benchmarks.tune_results import Place, Results
from benchmarks.tune_tasks import TASKS
from benchmarks.tuned import draw
from edgetune.errors import EdgeTuneError
from edgetune.files import read_json

ORDER = (
    ("nano-snips", "trainings"),
    ("nano-snips", "searches"),
    ("nano-snips", "tests"),
    ("minilm-banking77", "trainings"),
    ("minilm-banking77", "searches"),
    ("minilm-banking77", "tests"),
    ("nano-snips", "objectives"),
    ("nano-snips", "populations"),
    ("minilm-banking77", "populations"),
    ("minilm-banking77", "objectives"),
)
"""Of all parts, what tells most first."""


@click.command()
@click.argument("part", type=click.Choice(["all", *PARTS]))
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Of this one only.")
@click.option("--minutes", type=click.FloatRange(min=0), help="Begin nothing more after so many.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/benchmark-tune"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.json", help="Kept there.")
def main(part: str, tasks: tuple[str, ...], minutes: float | None, work: Path, out: Path) -> None:
    """Measure what is missing of PART, or of all of them."""
    results = Results(out)
    steps = [
        (Place(task, work, results), name) for task, name in ORDER if task in (tasks or TASKS) and part in ("all", name)
    ]
    try:
        is_whole = work_through(steps, minutes=minutes)
    except EdgeTuneError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if out.exists() and any(task.get("searches") for task in read_json(out)["tasks"].values()):
            draw(read_json(out), out.with_suffix(".png"))
    say("all is measured" if is_whole else "the rest is missing; the same command goes on")


def work_through(
    steps: Sequence[tuple[Place, str]],
    *,
    minutes: float | None = None,
    parts: Mapping[str, Part] = PARTS,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Make what is missing of parts of tasks, one after the other; False where something still is, because it was not
    ready or `minutes` are over, after which nothing more begins.
    """
    started, paces, is_whole = clock(), dict[str, tuple[float, float]](), True
    for number, (place, name) in enumerate(steps, 1):
        part = parts[name]
        missing = part.missing(place)
        if missing and not part.is_ready(place):
            say(f"{place.task} {name}: not ready; what comes before it is not done")
            is_whole = False
            continue
        for done, piece in enumerate(missing, 1):
            if minutes is not None and clock() - started >= 60 * minutes:
                say(f"{minutes:g} minutes are over")
                return False
            begun = clock()
            told = part.make(place, piece)
            seconds, cost = paces.get(place.task, (0.0, 0.0))
            paces[place.task] = seconds + clock() - begun, cost + part.cost
            later = [(one.task, parts[other].cost * len(parts[other].missing(one))) for one, other in steps[number:]]
            left = seconds_left([(place.task, part.cost * (len(missing) - done)), *later], paces)
            say(f"{place.task} {name} {done} of {len(missing)}, {_time(clock() - begun)}, {_time(left)} left: {told}")
    return is_whole


def seconds_left(costs: Sequence[tuple[str, float]], paces: Mapping[str, tuple[float, float]]) -> float:
    """For pieces of tasks, `costs` in trainings, by the seconds and trainings of each task so far; of a task of which
    nothing was made as fast as the others.
    """
    every = tuple(map(sum, zip(*paces.values(), strict=True)))
    rates = {task: operator.truediv(*paces.get(task, every)) for task, _ in costs}
    return sum(cost * rates[task] for task, cost in costs)


def say(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
