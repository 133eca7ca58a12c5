"""The bench stage: targets -> one report of what each is worth and costs on this machine. Behind `edgetune bench`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.bench.cores import pinned
from edgetune.bench.harness import require_harness
from edgetune.bench.measure import measure_costs, measure_harness
from edgetune.bench.noise import Value, absent
from edgetune.bench.settings import HarnessTask, Settings
from edgetune.bench.task import TASKS
from edgetune.bench.training import training_of
from edgetune.errors import RunError
from edgetune.evaluate.by_path import Asked, targets_of
from edgetune.evaluate.evaluate import Target, evaluate
from edgetune.evaluate.targets import target_at
from edgetune.evaluate.task import Rows
from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
from edgetune.model.gguf import is_gguf
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.report.measure import disk_bytes
from edgetune.run_dir import RunDir, find_run

FORMAT = "edgetune-bench"
VERSION = 1
"""Of the report's keys; a reader leaves out what another version wrote."""
NO_ROWS = "no rows: give some with --data"


@dataclass(frozen=True)
class Subject:
    """One target of a bench, and the rows it is scored on."""

    target: Target
    asked: Asked | None
    """Where its rows come from; None: it is not scored."""


def bench(
    paths: Sequence[str],
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    reference: str | None = None,
    task: HarnessTask | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """The report as JSON-able values; bench/table.py shows it.

    `overrides` are as for evaluate: data.test=... gives the rows, evaluate.metric=... what counts as right. `reference`
    names the target that others' probabilities are held against: by default a fine-tune, else the first. `task`: of
    lm-eval, whose score then stands for that of the rows.

    Raises RecipeError, DataError, RunError, ModelError, BundleError, HardwareError before anything is measured where
    that is known by then.
    """
    if task:
        require_harness()
    subjects = _subjects(paths, overrides)
    truth = _reference(subjects, reference)
    with pinned(settings.threads) as cores:
        worth, data = _score(subjects, truth, progress)
        if task:
            for subject, scores in zip(subjects, worth, strict=True):
                scores["score"] = measure_harness(subject.target, task, settings, progress)
        # Last: rows or a task that cannot be read are told before minutes of measuring.
        costs, machines = measure_costs([subject.target for subject in subjects], settings, progress)
    targets = [
        {**_identity(subject.target), **scores, **cost}
        for subject, cost, scores in zip(subjects, costs, worth, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": {**dataclasses.asdict(settings), "cores": cores},
        "machine": machines,
        "reference": truth.target.name if truth else None,
        "data": data,
        "task": dataclasses.asdict(task) if task else None,
        "targets": targets,
        "training": [training_of(run_dir) for run_dir in _runs(subjects)],
        "provenance": provenance(seed=0),
    }


def _subjects(paths: Sequence[str], overrides: Sequence[str]) -> list[Subject]:
    """All targets, each under a name of its own."""
    found: list[Subject] = []
    for path in paths:
        is_run = not is_gguf(path) and find_run(Path(path)) is not None
        has_rows = is_run or any(item.startswith("data.test=") for item in overrides)
        asked = targets_of(path, overrides=overrides) if has_rows else None
        for target in asked.targets if asked else [target_at(path)]:
            found.append(Subject(target, asked))
    if len(paths) > 1:
        found = [_renamed(subject, _full_name(subject)) for subject in found]
    names = [subject.target.name for subject in found]
    return [
        _renamed(subject, f"{name}-{names[: index + 1].count(name)}") if names.count(name) > 1 else subject
        for index, (subject, name) in enumerate(zip(found, names, strict=True))
    ]


def _runs(subjects: Sequence[Subject]) -> list[RunDir]:
    """The run folders in which targets lie."""
    found = [subject.asked.run_dir for subject in subjects if subject.asked and subject.asked.run_dir]
    return list({run_dir.path.resolve(): run_dir for run_dir in found}.values())


def _full_name(subject: Subject) -> str:
    """The run's name before the target's, where several paths are compared."""
    run_dir = subject.asked.run_dir if subject.asked else None
    return f"{run_dir.path.resolve().name}-{subject.target.name}" if run_dir else subject.target.name


def _renamed(subject: Subject, name: str) -> Subject:
    return dataclasses.replace(subject, target=dataclasses.replace(subject.target, name=name))


def _reference(subjects: Sequence[Subject], wanted: str | None) -> Subject | None:
    """Whose probabilities are the truth. Raises RunError if no scored target has the name."""
    scored = [subject for subject in subjects if subject.asked]
    if wanted is None:
        return next((item for item in scored if item.target.kind == "tuned"), scored[0] if scored else None)
    for subject in scored:
        if wanted in (subject.target.name, str(subject.target.path)):
            return subject
    names = ", ".join(subject.target.name for subject in scored) or "none, for want of rows (--data)"
    raise RunError(f"--reference {wanted}: is none of the targets that are scored", cure=f"these are: {names}")


def _identity(target: Target) -> dict[str, Any]:
    """What a target is, and its bytes on disk."""
    return {
        "name": target.name,
        "path": str(target.path),
        "kind": target.kind,
        "task": target.task,
        "disk_bytes": disk_bytes(*target.shipped, suffixes=target.shipped_suffixes),
    }


def _score(
    subjects: Sequence[Subject], truth: Subject | None, progress: Progress
) -> tuple[list[dict[str, Value]], dict[str, Any] | None]:
    """Score, loss, perplexity and distance of each, in order; and what the rows are. The reference goes first."""
    missing = {name: absent(NO_ROWS) for name in ("score", "loss", "perplexity", "kl")}
    found: dict[int, dict[str, Value]] = {}
    data = None
    with tempfile.TemporaryDirectory() as work:
        order = sorted(range(len(subjects)), key=lambda number: subjects[number] is not truth)
        tokens: str | None = None
        for number in order:
            subject, folder = subjects[number], Path(work) / str(number)
            if subject.asked is None:
                continue
            eval_set = prepare_eval_set(subject.asked.recipe, subject.asked.reader, folder)
            own = eval_set.text_hash
            tokens, data = tokens or own, data or _data(eval_set)
            result = evaluate(
                subject.target,
                folder / EVAL_SET_FILE,
                folder,
                distributions=Path(work) / "distributions.npy" if own == tokens else None,
                is_reference=subject is truth,
                progress=progress,
            )
            found[number] = TASKS[subject.target.task].worth(result, own == tokens)
    return [found.get(number, dict(missing)) for number in range(len(subjects))], data


def _data(eval_set: Rows) -> dict[str, Any]:
    """What the scores are of."""
    return {
        "source": eval_set.source,
        "metric": eval_set.metric,
        "rows": len(eval_set.rows),
        "source_rows": eval_set.source_rows,
        "dropped": eval_set.dropped,
        "confidence": eval_set.confidence,
    }
