"""Speed and memory of targets, each measurement in a fresh process on pinned cores: rounds of samples -> columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgetune.bench.left_out import LeftOut
from edgetune.bench.noise import Value
from edgetune.bench.settings import HarnessTask, Settings
from edgetune.bench.task import TASKS
from edgetune.child_process import ask
from edgetune.evaluate.target import Target
from edgetune.progress import Progress, as_stage

CHILD = ["-m", "edgetune.bench.child"]
"""What Python runs for one measurement."""


def measure_harness(target: Target, task: HarnessTask, settings: Settings, progress: Progress) -> Value:
    """The score of a target on a task of lm-eval, and its answers: see harness.measure_task. Raises DataError."""
    if not TASKS[target.task].WRITES_TEXT:
        return TASKS[target.task].LACKS
    request = {"measure": "lm-eval", "task_name": task.name, **dataclasses.asdict(task)}
    return _ask(target, request, settings=settings, progress=as_stage(progress, f"lm-eval {target.name}"))


def measure_costs(
    targets: Sequence[Target], settings: Settings, left_out: LeftOut, progress: Progress
) -> tuple[dict[str, dict[str, Value]], dict[str, Any]]:
    """The columns of speed and memory of each target by its name, and what each device they ran on can do at best.

    Targets take turns, so that a machine that slows down slows all; one that fails has no further turn.
    """
    rounds: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for number in range(1, settings.repeats + 1):
        for target in targets:
            if target.name in left_out.errors:
                continue
            where = f"bench {target.name}, round {number} of {settings.repeats}"
            ask_target = partial(_ask, target, settings=settings, progress=as_stage(progress, where))
            measure_round = partial(TASKS[target.task].measure_round, ask_target, settings)
            found = left_out.attempt(target.name, measure_round)
            rounds[target.name] += [found] if found else []
    measured = [target for target in targets if target.name not in left_out.errors]
    machines = {
        device: ask(
            CHILD,
            {"measure": "machine", "name": "the machine", "device": device, "threads": settings.threads},
            name="the machine",
        )
        for device in sorted({rounds[target.name][0]["device"] for target in measured})
    }
    columns = {
        target.name: _columns(target, rounds[target.name], settings, machines[rounds[target.name][0]["device"]])
        for target in measured
    }
    return columns, machines


def _columns(
    target: Target, rounds: Sequence[Mapping[str, Any]], settings: Settings, machine: Mapping[str, Any]
) -> dict[str, Value]:
    """The columns of the target's task; those of other tasks are absent."""
    task = TASKS[target.task]
    lacking = dict.fromkeys((name for other in TASKS.values() for name in other.COLUMNS), task.LACKS)
    return {**lacking, **task.columns(rounds, settings, machine)}


def _ask(target: Target, request: Mapping[str, Any], *, settings: Settings, progress: Progress) -> dict[str, Any]:
    """One measurement of a target."""
    whole = {
        **request,
        "kind": target.kind,
        "name": target.name,
        "path": str(target.path),
        "model": dataclasses.asdict(target.model) if target.model else None,
        "task": target.task,
        "threads": settings.threads,
    }
    return ask(CHILD, whole, name=str(target.path), progress=progress)
