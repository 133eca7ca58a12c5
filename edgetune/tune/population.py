"""Population-based training: members are trained side by side, weak ones copy strong ones, the best one is kept.

In the flow: recipe -> space, course, first values -> generations on Ray (on_ray.py, member.py) -> best/, a run folder
like any other, best.toml, which trains to the same adapter, and population.json. Goes on where it was stopped.
Source: Jaderberg et al. 2017, Population Based Training of Neural Networks (arXiv:1711.09846).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgetune.errors import DivergedError, MissingExtraError, OutOfMemoryError, RecipeError, RunError, first_line
from edgetune.files import read_json, write_json, write_text
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe
from edgetune.train.setup import count_steps
from edgetune.train.stop import StopRequest, listen_for_stop
from edgetune.tune.member import Begin, Course, Generations, Job, Outcome, PopulationDir
from edgetune.tune.mutation import first_values, population_space
from edgetune.tune.pictures import draw_population
from edgetune.tune.space import Space, describe
from edgetune.tune.study import differences, identity
from edgetune.tune.trial import TrialDir, Workbench

STAGE = "tune"


@dataclass(frozen=True)
class PopulationResult:
    """A population that has been trained."""

    folder: PopulationDir
    recipe: Recipe
    """Of the best member."""
    document: Mapping[str, Any]
    """As population.json holds it."""


class Session(Protocol):
    """What trains members: on_ray.train_on_ray."""

    def __call__(
        self,
        job: Job,
        begins: Sequence[Begin],
        *,
        workers: int | None,
        request: StopRequest,
        tell: Callable[[Outcome], None],
    ) -> None:
        """All generations from those that the members begin with to the last one."""


def train_population(
    recipe: Recipe,
    folder: PopulationDir,
    *,
    force: bool = False,
    session: Session | None = None,
    progress: Progress | None = None,
) -> PopulationResult:
    """Train the population of [tune]; goes on with the one that is there, `force` begins anew.

    `session`: what trains the members, if not Ray. Raises RecipeError for a space that cannot stand or a training too
    short, ModuleNotFoundError without Ray, RunError for a folder of another population, Stopped after a signal,
    OutOfMemoryError if the members do not fit side by side, DivergedError if all of them diverge.
    """
    population_space(recipe, learning_rate=1e-4)  # what is wrong with it is known before anything is loaded
    train = session or _on_ray()
    notify = progress or silent
    bench = Workbench(recipe, folder.path)
    space = population_space(recipe, learning_rate=bench.learning_rate)
    of = {
        **identity(recipe, space, bench.base_sha256),
        "tune.population": recipe.tune.population,
        "tune.seed": recipe.tune.seed,
    }
    if finished := _claim(recipe, folder, of, force=force):
        notify({"stage": STAGE, "message": f"up to date: {folder.run.path}"})
        return finished
    job = _job(recipe, folder, space, bench)
    workers = _workers(job.recipe, bench)
    begins = _begins(job, bench.learning_rate)
    course = job.course
    text = f"{len(begins)} members, each {course.steps:,} steps in {course.generations} generations"
    notify({"stage": STAGE, "message": text})
    known = begins[0].generation if job.place.outcomes(begins[0].generation, len(begins)) else 0
    if known:
        notify({"stage": STAGE, "message": f"goes on after generation {known}"})
    if known < course.generations:
        with listen_for_stop() as request:
            train(job, begins, workers=workers, request=request, tell=_Teller(job, known, notify))
    return _finish(job, folder, bench, of)


def _on_ray() -> Session:
    """The session of Ray Tune. Raises ModuleNotFoundError without Ray, MissingExtraError with half of it."""
    try:
        from edgetune.tune.on_ray import train_on_ray
    except ModuleNotFoundError:
        raise
    except ImportError as error:  # ray.tune's own, where ray is installed without what that needs
        raise MissingExtraError(
            f"Ray Tune cannot be used: {first_line(error)}", cure="install it: pip install 'edgetune[ray]'"
        ) from None
    return train_on_ray


def _claim(recipe: Recipe, folder: PopulationDir, of: Mapping[str, Any], *, force: bool) -> PopulationResult | None:
    """Make the folder this population's; what was found, if it is trained. Raises RunError if it is another's."""
    mine = (folder.generations.path, folder.run.path, folder.best)
    if not folder.results.exists() and (taken := [path.name for path in mine if path.exists()]):
        raise RunError(
            f"{folder.path}: is no population's (no {folder.results.name}) but has {', '.join(taken)}, "
            "which one would replace",
            cure="choose another folder with --out",
        )
    if force:
        for path in mine:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folder.results.unlink(missing_ok=True)
    if not folder.results.exists():
        write_json(folder.results, {"of": of})
        return None
    found = read_json(folder.results, cure="begin anew with --force")
    if told := differences(of, found.get("of", {})):
        raise RunError(
            f"{recipe.name}: the folder holds another population: {'; '.join(told[:4])}",
            cure="choose another folder with --out, or begin anew with --force",
        )
    if "best" not in found:
        return None
    best = dataclasses.replace(load_recipe(folder.best), name=recipe.name)
    return PopulationResult(folder, best, found)


def _job(recipe: Recipe, folder: PopulationDir, space: Space, bench: Workbench) -> Job:
    """What all members are told. Raises RecipeError if there is nothing to copy in so short a training."""
    settled, steps, eval_steps = count_steps(recipe, TrialDir(folder.path, shared_cache=bench.cache))
    course = Course(steps, eval_steps)
    if course.generations < 2:
        raise RecipeError(
            f"{recipe.name}: its {steps} steps have one evaluation, at the end, so that no member can copy another",
            cure="lower train.eval_steps, or train longer",
        )
    place = Generations(folder.generations.path.absolute())
    return Job(settled, space, course, place, folder.path.absolute(), Path.cwd())


def _workers(recipe: Recipe, bench: Workbench) -> int | None:
    """How many members train at the same time on this machine; what tune.workers says of a cluster.

    Raises OutOfMemoryError if as many as are asked for do not fit.
    """
    import torch

    if recipe.tune.ray_address is not None:
        return recipe.tune.workers
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    fit = (bench.room_bytes(recipe) // max(1, bench.peak_bytes(recipe))) * max(1, gpus)
    asked = recipe.tune.workers or min(recipe.tune.population or 1, gpus or cores, max(1, fit))
    if asked > fit:
        needed, room = bench.peak_bytes(recipe), bench.room_bytes(recipe)
        raise OutOfMemoryError(
            f"{asked} members at once do not fit: each needs {needed / 1024**2:,.0f} MiB, "
            f"{room / 1024**2:,.0f} MiB are there",
            cure="lower tune.workers, or `edgetune plan RECIPE --fit NEW` writes a recipe that fits",
        )
    return asked


def _begins(job: Job, learning_rate: float) -> list[Begin]:
    """Where each member begins: at the newest generation that is whole, which is then only told again so that the same
    members copy the same others; else at the first.
    """
    count = job.recipe.tune.population or 0
    for generation in range(job.course.generations, 0, -1):
        if made := job.place.outcomes(generation, count):
            return [Begin(one.member, generation, one.parent, one.lineage.now) for one in made]
    values = first_values(job.recipe, job.space, learning_rate=learning_rate)
    return [Begin(member, 1, None, one) for member, one in enumerate(values)]


class _Teller:
    """Tells of outcomes but those up to generation `known`, and ends a population in which all have diverged."""

    def __init__(self, job: Job, known: int, notify: Progress) -> None:
        self._job, self._notify, self._known = job, notify, known

    def __call__(self, made: Outcome) -> None:
        if made.generation > self._known:
            self._notify({"stage": STAGE, "message": _line(made, self._job.course)})
        every = self._job.place.outcomes(made.generation, self._job.recipe.tune.population or 0)
        if every and all(one.eval_loss is None for one in every):
            raise DivergedError(
                f"all members have diverged by step {made.step}", cure="search lower learning rates in tune.space"
            )


def _line(made: Outcome, course: Course) -> str:
    """An outcome in a line."""
    copied = "" if made.parent in (None, made.member) else f", copied from member {made.parent}"
    loss = "diverged" if made.eval_loss is None else f"eval loss {made.eval_loss:.4f}"
    values = ", ".join(f"{key} {value:.3g}" for key, value in made.lineage.now.items())
    return f"member {made.member}, step {made.step} of {course.steps}{copied}: {loss} with {values}"


def _finish(job: Job, folder: PopulationDir, bench: Workbench, of: Mapping[str, Any]) -> PopulationResult:
    """The best member's run folder and recipe, and what became of all; only then do the others go."""
    count = job.recipe.tune.population or 0
    last = job.place.outcomes(job.course.generations, count) or []
    sound = [one for one in last if one.eval_loss is not None]
    if not sound:
        raise DivergedError(f"{job.recipe.name}: all members have diverged")
    best = min(sound, key=lambda one: _rank(one, job.recipe))
    recipe = best.lineage.of(job.recipe)
    made = job.place.run_dir(best.generation, best.member, bench.cache)
    if made.path.exists():
        shutil.rmtree(folder.run.path, ignore_errors=True)
        made.path.rename(folder.run.path)
    document = {"of": of, **_document(job, best)}
    write_text(folder.best, recipe.to_toml())
    draw_population(document, folder.picture)
    write_json(folder.results, document)
    shutil.rmtree(folder.generations.path, ignore_errors=True)
    return PopulationResult(folder, recipe, read_json(folder.results))


def _rank(one: Outcome, recipe: Recipe) -> tuple[float, float, int]:
    """Less is better: the objective, then the loss, then the number."""
    loss = one.loss if one.loss is not None else float("inf")
    is_loss = one.score is None or recipe.tune.objectives == ("loss",)
    return (loss if is_loss else -(one.score or 0.0), loss, one.member)


def _document(job: Job, best: Outcome) -> dict[str, Any]:
    """What population.json holds."""
    recipe, course = job.recipe, job.course
    made = [
        outcome
        for generation in range(1, course.generations + 1)
        for outcome in job.place.outcomes(generation, recipe.tune.population or 0) or ()
    ]
    tokens: dict[tuple[int, int | None], int] = {(one.generation, one.member): one.tokens for one in made}
    spent = sum(one.tokens - tokens.get((one.generation - 1, one.parent), 0) for one in made)
    return {
        "recipe": recipe.name,
        "metric": recipe.evaluate.metric,
        "score_of": recipe.tune.score_of,
        "objective": recipe.tune.objectives[0],
        "population": recipe.tune.population,
        "steps": course.steps,
        "eval_steps": course.eval_steps,
        "generations": course.generations,
        "best": dataclasses.asdict(best),
        "copies": len([one for one in made if one.parent not in (None, one.member)]),
        "tokens": spent,
        "member_minutes": sum(one.wall_s for one in made) / 60,
        "space": describe(job.space),
        "seed": recipe.tune.seed,
        "outcomes": [dataclasses.asdict(one) for one in made],
        "provenance": provenance(recipe.train.seed),
    }
