"""The bench stage: targets -> one report of what each is worth and costs on this machine. Behind `edgetune bench`."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.bench.cores import pinned
from edgetune.bench.harness import require_harness
from edgetune.bench.left_out import LeftOut
from edgetune.bench.measure import measure_costs
from edgetune.bench.settings import HarnessTask, Settings
from edgetune.bench.subjects import Subject, choose_reference, find_subjects, runs_of
from edgetune.bench.training import training_of
from edgetune.bench.worth import Worth, score_on_rows, score_on_task
from edgetune.data.read import on_disk
from edgetune.evaluate.target import Target
from edgetune.files import atomic_folder, refuse_to_replace
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.report.measure import disk_bytes

FORMAT = "edgetune-bench"
VERSION = 1
"""Of the report's keys; a reader leaves out what another version wrote."""


def bench(
    paths: Sequence[str],
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    reference: str | None = None,
    task: HarnessTask | None = None,
    answers: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """The report as JSON-able values; bench/table.py shows it.

    `overrides` are as for evaluate: data.test=... gives the rows, evaluate.metric=... what counts as right. `reference`
    names the target that others' probabilities are held against: by default a fine-tune, else the first. `task`: of
    lm-eval, whose score then stands for that of the rows. `answers`: a folder to keep what each target answered, which
    it replaces; the report's "answers" are paths from beside it.

    A target that cannot be loaded, scored or measured is named with its reason in "left_out"; the others go on. Raises
    what the first one raised if none is left; RunError for a reference that is none, a folder that would be lost;
    HardwareError for more threads than there are cores.
    """
    if task:
        require_harness()
    left_out = LeftOut()
    subjects = find_subjects(paths, overrides, left_out)
    truth = choose_reference(subjects, reference)
    is_scored = task is not None or any(subject.asked for subject in subjects)
    if answers is not None:
        _refuse_to_lose(answers, subjects)
    with pinned(settings.threads) as cores, tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        kept = Path(work) / "answers"
        if answers is not None and is_scored:
            kept = stack.enter_context(atomic_folder(answers))
        worth = score_on_rows(subjects, truth, kept, work=Path(work), left_out=left_out, progress=progress)
        if task:
            for subject in _left(subjects, left_out):
                score = partial(score_on_task, subject, task, settings, kept, progress)
                worth.columns[subject.name].update(left_out.attempt(subject.name, score) or {})
        # Last: rows or a task that cannot be read are told before minutes of measuring.
        targets = [subject.target for subject in _left(subjects, left_out)]
        costs, machines = measure_costs(targets, settings, left_out, progress)
        measured = _left(subjects, left_out)
        for name in left_out.errors:
            for folder in (name, f"{name}-lm-eval"):
                shutil.rmtree(kept / folder, ignore_errors=True)
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": {**dataclasses.asdict(settings), "cores": cores},
        "machine": machines,
        "reference": worth.reference,
        "data": worth.data,
        "task": dataclasses.asdict(task) if task else None,
        "targets": [
            {**_identity(subject.target), **_worth(worth, subject, answers), **costs[subject.name]}
            for subject in measured
        ],
        "left_out": left_out.told,
        "training": [training_of(run_dir) for run_dir in runs_of(measured)],
        "provenance": provenance(seed=0),
    }


def _left(subjects: Sequence[Subject], left_out: LeftOut) -> list[Subject]:
    """Those that nothing went wrong with. Raises what the first one raised if there are none."""
    found = [subject for subject in subjects if subject.name not in left_out.errors]
    left_out.refuse_if_all(len(found))
    return found


def _worth(worth: Worth, subject: Subject, answers: Path | None) -> dict[str, Any]:
    """The columns of worth; where the answers lie, if they are kept."""
    columns = dict(worth.columns[subject.name])
    place = columns.pop("answers", None)
    return columns if answers is None or place is None else {"answers": f"{answers.name}/{place}", **columns}


def _refuse_to_lose(answers: Path, subjects: Sequence[Subject]) -> None:
    """Raises RunError if a folder of answers would replace what is read, or what is no such folder."""
    sources = [subject.target.path for subject in subjects]
    sources += [source for subject in subjects if subject.asked for source in on_disk(subject.asked.recipe.data)]
    refuse_to_replace(answers, *sources, what="folder of a bench's answers", is_one=_holds_answers)


def _holds_answers(folder: Path) -> bool:
    return all(any(item.glob("*-answers.jsonl")) for item in folder.iterdir())


def _identity(target: Target) -> dict[str, Any]:
    """What a target is, and its bytes on disk."""
    return {
        "name": target.name,
        "path": str(target.path),
        "kind": target.kind,
        "task": target.task,
        "disk_bytes": disk_bytes(*target.shipped, suffixes=target.shipped_suffixes),
    }
