"""What a bench measures: its targets, each under a name of its own, and the rows they are scored on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgetune.bench.left_out import LeftOut
from edgetune.errors import RunError
from edgetune.evaluate.by_path import Asked, targets_of
from edgetune.evaluate.target import Target
from edgetune.evaluate.targets import target_at
from edgetune.model.gguf import is_gguf
from edgetune.run_dir import RunDir, find_run


@dataclass(frozen=True)
class Subject:
    """One target of a bench, and the rows it is scored on."""

    target: Target
    asked: Asked | None
    """Where its rows come from; None: it is not scored."""

    @property
    def name(self) -> str:
        """That of its target."""
        return self.target.name


def find_subjects(paths: Sequence[str], overrides: Sequence[str], left_out: LeftOut) -> list[Subject]:
    """All targets that the paths name. Raises what the first path raised if none names any."""
    found: list[Subject] = []
    for path in paths:
        found += left_out.attempt(path, partial(_at_path, path, overrides)) or []
    left_out.refuse_if_all(len(found))
    if len(paths) > 1:
        found = [_renamed(subject, _full_name(subject)) for subject in found]
    names = [subject.name for subject in found]
    return [
        _renamed(subject, f"{name}-{names[: index + 1].count(name)}") if names.count(name) > 1 else subject
        for index, (subject, name) in enumerate(zip(found, names, strict=True))
    ]


def choose_reference(subjects: Sequence[Subject], wanted: str | None) -> Subject | None:
    """Whose probabilities are the truth. Raises RunError if no scored target has the name."""
    scored = [subject for subject in subjects if subject.asked]
    if wanted is None:
        return next((item for item in scored if item.target.kind == "tuned"), scored[0] if scored else None)
    for subject in scored:
        if wanted in (subject.name, str(subject.target.path)):
            return subject
    names = ", ".join(subject.name for subject in scored) or "none, for want of rows (--data)"
    raise RunError(f"--reference {wanted}: is none of the targets that are scored", cure=f"these are: {names}")


def runs_of(subjects: Sequence[Subject]) -> list[RunDir]:
    """The run folders in which targets lie."""
    found = [subject.asked.run_dir for subject in subjects if subject.asked and subject.asked.run_dir]
    return list({run_dir.path.resolve(): run_dir for run_dir in found}.values())


def _at_path(path: str, overrides: Sequence[str]) -> list[Subject]:
    is_run = not is_gguf(path) and find_run(Path(path)) is not None
    has_rows = is_run or any(item.startswith("data.test=") for item in overrides)
    asked = targets_of(path, overrides=overrides) if has_rows else None
    return [Subject(target, asked) for target in (asked.targets if asked else [target_at(path)])]


def _full_name(subject: Subject) -> str:
    """The run's name before the target's, where several paths are compared."""
    run_dir = subject.asked.run_dir if subject.asked else None
    return f"{run_dir.path.resolve().name}-{subject.name}" if run_dir else subject.name


def _renamed(subject: Subject, name: str) -> Subject:
    return dataclasses.replace(subject, target=dataclasses.replace(subject.target, name=name))
