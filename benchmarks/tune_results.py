"""results/tune.json as it grows: read, and changed by one piece at a time, each with the commit that it was made at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.readme import REPOSITORY, RESULTS
from benchmarks.tune_table import Axis
from benchmarks.tune_tasks import TASKS, task_recipe
from edgetune.files import read_json, write_json
from edgetune.provenance import provenance
from edgetune.recipe import Recipe

METHODS = {
    "random": ("random", "none"),
    "TPE": ("tpe", "none"),
    "TPE + halving": ("tpe", "halving"),
    "TPE + Hyperband": ("tpe", "hyperband"),
    "GP": ("gp", "none"),
    "GP + halving": ("gp", "halving"),
}
"""Sampler and pruner of each."""
PIECES = ("table", "populations", "tests", "objectives")
"""Of a task: lists of what is made one by one; searches are a list for each method."""
PLACES = ("--work", "--out")
"""Options that say where this machine keeps its files, and nothing of what was measured."""


@dataclass(frozen=True)
class Results:
    """The file. Several processes may work on it, each on pieces of its own."""

    path: Path

    def of(self, task: str) -> dict[str, Any]:
        """What was measured of a task."""
        return dict(self._tasks().get(task, {}))

    def keep(self, task: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Put what `change` makes of what was measured of a task in its place."""
        with self._alone():
            tasks = self._tasks()
            tasks = {**tasks, task: change(dict(tasks.get(task, {})))}
            document = {
                "what": "searches over tables of real trainings, interpolated between them; see benchmarks/tune.py",
                "methods": {name: list(how) for name, how in METHODS.items()},
                "rows": {name: dict(one.rows) for name, one in TASKS.items()},
                "threads": torch.get_num_threads(),
                "tasks": tasks,
                "provenance": {**provenance(), "commit": oldest(commits(tasks)), "command": without_places(sys.argv)},
            }
            write_json(self.path, document)

    def add(self, task: str, part: str, piece: Mapping[str, Any]) -> None:
        """One more piece of a part of PIECES, at the commit of this tree."""
        made = {**piece, "commit": this_commit()}
        self.keep(task, lambda found: {**found, part: [*found.get(part, []), made]})

    def _tasks(self) -> dict[str, Any]:
        return dict(read_json(self.path)["tasks"]) if self.path.exists() else {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside the block no other process changes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


@dataclass(frozen=True)
class Place:
    """A task, where it works and what it has so far."""

    task: str
    work: Path
    results: Results

    @property
    def found(self) -> dict[str, Any]:
        """What was measured of it."""
        return self.results.of(self.task)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Of the grid, and of every search."""
        return TASKS[self.task].axes

    @property
    def recipe(self) -> Recipe:
        """As it is; its rows are drawn where they are not yet."""
        return task_recipe(self.task, self.work)

    @property
    def folder(self) -> Path:
        """Of its trainings."""
        return self.work / self.task

    def empty(self, name: str) -> Path:
        """A folder for one training, without what one that was killed has left there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name


def commits(tasks: Mapping[str, Mapping[str, Any]]) -> set[str | None]:
    """Those that the pieces of all tasks were made at; None among them where a piece names none."""
    found: set[str | None] = set()
    for task in tasks.values():
        lists = [task.get(part, []) for part in PIECES] + list(task.get("searches", {}).values())
        found |= {piece.get("commit") for pieces in lists for piece in pieces}
    return found


def oldest(found: Iterable[str | None]) -> str | None:
    """The commit that all pieces are as new as, at least; None where one names none, or none of this history."""
    ages = {commit: _age(commit) for commit in found}
    if not ages or None in ages.values():
        return None
    return max(ages, key=lambda commit: ages[commit] or 0)


def this_commit() -> str | None:
    """The commit of this tree, "+" after it where files differ; results do not count, for this script writes them."""
    found = provenance()["commit"]
    if found is None or not found.endswith("+"):
        return found
    results = RESULTS.relative_to(REPOSITORY)
    is_clean = _git("diff", "--quiet", "HEAD", "--", ".", f":(exclude){results}") is not None
    return found.rstrip("+") if is_clean else found


def without_places(command: Sequence[str]) -> list[str]:
    """A command without the folders of this machine."""
    kept, is_place = [Path(command[0]).name], False
    for word in command[1:]:
        if not is_place and word.partition("=")[0] not in PLACES:
            kept.append(word)
        is_place = word in PLACES
    return kept


def _age(commit: str | None) -> int | None:
    """Commits between one and this tree; None where it is not in this history."""
    if commit is None or _git("merge-base", "--is-ancestor", commit.rstrip("+"), "HEAD") is None:
        return None
    count = _git("rev-list", "--count", f"{commit.rstrip('+')}..HEAD")
    return None if count is None else int(count)


def _git(*arguments: str) -> str | None:
    """What git says; None where it exits with anything but 0."""
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
