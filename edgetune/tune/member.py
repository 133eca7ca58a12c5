"""A member of a population: its training from one evaluation to the next, in a run folder of its own.

In the flow: checkpoint of a member (its own, or the one it copies) -> run folder of this generation, with the recipe
that says all values so far -> trained to the next evaluation -> outcome. Folder and outcome lie where all machines see
them; a generation that was killed is gone on with, one that is done is not done again.

    population/generation-0003/member-2/       run folder; goes when two generations are made on top of it
    population/generation-0003/member-2.json   outcome
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import DivergedError, RunError
from edgetune.files import read_json, write_json
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir, refuse_other_run
from edgetune.train.events import read_events
from edgetune.tune.lineage import Lineage
from edgetune.tune.space import Space
from edgetune.tune.trial import TrialDir, Workbench


@dataclass(frozen=True)
class Course:
    """How long all members are trained."""

    steps: int
    eval_steps: int

    @property
    def generations(self) -> int:
        """Evaluations."""
        return -(-self.steps // self.eval_steps)

    def step(self, generation: int) -> int:
        """The step at which a generation ends."""
        return min(self.steps, generation * self.eval_steps)


@dataclass(frozen=True)
class Begin:
    """What a member is trained with next."""

    member: int
    generation: int
    """The one that is to be made, from 1."""
    parent: int | None
    """From whose checkpoint after the generation before: another's where it copies; None in the first generation."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A member after a generation. Losses in nats per trained token (or text)."""

    member: int
    generation: int
    parent: int | None
    step: int
    lineage: Lineage
    eval_loss: float | None
    """Of the adapter as it is now; None once it has diverged."""
    tokens: int
    """Read since the first step, by those that it comes from."""
    wall_s: float
    """Of this generation."""
    best_step: int = 0
    """Of its kept adapter, that of the least eval loss of all it comes from."""
    score: float | None = None
    """Of the kept adapter as tune.score_of says, after the last generation; None where the metric is the loss."""
    loss: float | None = None
    """Of the same model."""
    rows: int = 0
    """Scored."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """As dataclasses.asdict gave it."""
        return cls(**{**values, "lineage": Lineage.from_json(values["lineage"])})


@dataclass(frozen=True)
class Generations:
    """Where a population works."""

    path: Path

    def run_dir(self, generation: int, member: int, cache: Path) -> TrialDir:
        """The run folder of a member in a generation."""
        return TrialDir(self._folder(generation) / f"member-{member}", shared_cache=cache)

    def outcome(self, generation: int, member: int) -> Outcome | None:
        """What became of it; None where it is not done."""
        file = self._file(generation, member)
        return Outcome.from_json(read_json(file)) if file.exists() else None

    def outcomes(self, generation: int, count: int) -> list[Outcome] | None:
        """Those of all members; None while one is not done."""
        found = [self.outcome(generation, member) for member in range(count)]
        whole = [outcome for outcome in found if outcome is not None]
        return whole if len(whole) == count else None

    def write(self, outcome: Outcome) -> None:
        """Keep an outcome; the member's run folder two generations before goes, for nobody begins from it any more."""
        write_json(self._file(outcome.generation, outcome.member), dataclasses.asdict(outcome))
        shutil.rmtree(self._folder(outcome.generation - 2) / f"member-{outcome.member}", ignore_errors=True)

    def _folder(self, generation: int) -> Path:
        return self.path / f"generation-{generation:04d}"

    def _file(self, generation: int, member: int) -> Path:
        return self._folder(generation) / f"member-{member}.json"


@dataclass(frozen=True)
class PopulationDir:
    """Where a population works and what it leaves."""

    path: Path

    @property
    def generations(self) -> Generations:
        """Members under way."""
        return Generations(self.path / "population")

    @property
    def results(self) -> Path:
        """What was found, and before that what it is of."""
        return self.path / "population.json"

    @property
    def best(self) -> Path:
        """The recipe of the best member, with all its values."""
        return self.path / "best.toml"

    @property
    def run(self) -> RunDir:
        """The best member's training."""
        return RunDir(self.path / "best")

    @property
    def picture(self) -> Path:
        """Eval losses and values over the steps."""
        return self.path / "population.png"


@dataclass(frozen=True)
class Job:
    """What every member is told, whichever process trains it."""

    recipe: Recipe
    space: Space
    course: Course
    place: Generations
    folder: Path
    """Of the population, absolute, the same on all machines."""
    cwd: Path
    """Where relative paths of the recipe begin."""


def train_generation(bench: Workbench, job: Job, begin: Begin, *, progress: Progress | None = None) -> Outcome:
    """Train a member to the next evaluation, after the last one score it; the outcome is kept, one that is there given.

    Raises what train and score raise, but for a divergence: that is an outcome.
    """
    place = job.place
    done = place.outcome(begin.generation, begin.member)
    if done and (done.parent, done.lineage.now) == (begin.parent, begin.values):
        return done
    parent = None if begin.parent is None else place.outcome(begin.generation - 1, begin.parent)
    lineage = parent.lineage.then(parent.step, begin.values) if parent else Lineage(begin.values)
    outcome = Outcome(
        begin.member,
        begin.generation,
        begin.parent,
        job.course.step(begin.generation),
        lineage,
        eval_loss=None,
        tokens=parent.tokens if parent else 0,
        wall_s=0.0,
    )
    if parent is None or parent.eval_loss is not None:
        outcome = _train(bench, job, outcome, progress)
    place.write(outcome)
    return outcome


def _train(bench: Workbench, job: Job, begun: Outcome, progress: Progress | None) -> Outcome:
    """The outcome of a training that begins, or goes on, in the member's run folder."""
    started = time.perf_counter()
    recipe, place = begun.lineage.of(job.recipe), job.place
    run_dir = place.run_dir(begun.generation, begun.member, bench.cache)
    start = None if begun.parent is None else place.run_dir(begun.generation - 1, begun.parent, bench.cache)
    _clear(run_dir, recipe)
    tokens = begun.tokens

    def watch(event: Mapping[str, Any]) -> None:
        nonlocal tokens
        tokens = int(event.get("tokens", tokens))
        if progress is not None:
            progress(event)

    try:
        made = bench.train(recipe, run_dir, start=start, evaluations=begun.generation, progress=watch)
    except DivergedError:
        return dataclasses.replace(begun, tokens=tokens, wall_s=time.perf_counter() - started)
    losses = [event["eval_loss"] for event in read_events(run_dir.events) if "eval_loss" in event]
    outcome = dataclasses.replace(begun, eval_loss=losses[-1], tokens=made.tokens, best_step=made.best_step)
    if begun.generation == job.course.generations:
        scored = bench.score(recipe, run_dir, progress=progress)
        outcome = dataclasses.replace(outcome, score=scored.score, loss=scored.loss, rows=scored.rows)
    return dataclasses.replace(outcome, wall_s=time.perf_counter() - started)


def _clear(run_dir: RunDir, recipe: Recipe) -> None:
    """Remove what a member with other values has left there, half made."""
    try:
        refuse_other_run(run_dir, recipe.to_toml())
    except RunError:
        shutil.rmtree(run_dir.path)
