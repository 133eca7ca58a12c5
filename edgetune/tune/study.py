"""A study: one search for hyperparameters, in a database, of one recipe, base and data; new or gone on with.

In the flow: recipe -> space -> study -> trials (search.py) -> what was found (findings.py). Any number of processes may
work on one study; each takes the next trial when it is done with its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from edgetune.data.read import content_hashes, is_hub_id, splits
from edgetune.errors import EdgeTuneError, RunError
from edgetune.hashes import hash_values
from edgetune.progress import Progress, silent
from edgetune.recipe import TABLES, Recipe
from edgetune.tune.findings import best_trials
from edgetune.tune.sampling import SeededSampler, encoded, fits, grid_size, make_pruner, settled
from edgetune.tune.space import Space, describe, read_space, values_of
from edgetune.tune.storage import close, file_url, open_storage
from edgetune.tune.trial import Bench, Workbench

PLANNED = ": "
"""Between a study's name and that of the planned trials that belong to it."""
IDENTITY = "edgetune"
"""The attribute that says what a study is of."""
CLAIM_S = 30.0
"""A worker that made a study and has not said by then what it is of has died."""
WARM_TRIALS = 3
"""Of earlier studies on the same base, whose best values a study begins with."""
ALIKE = ("base_sha256", "evaluate.metric", "tune.objectives")
"""What an earlier study must share with this one for its best values to be tried."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudyDir:
    """Where a study works and what it leaves; may be a folder of the user's own."""

    path: Path

    @property
    def database(self) -> Path:
        """Optuna's tables, where no other storage is named."""
        return self.path / "study.db"

    @property
    def trials(self) -> Path:
        """A run folder for each trial under way."""
        return self.path / "trials"

    @property
    def results(self) -> Path:
        """What was found, as JSON."""
        return self.path / "tune.json"

    @property
    def best(self) -> Path:
        """The recipe with the best values."""
        return self.path / "best.toml"

    @property
    def sensitivity(self) -> Path:
        """What each key alone changes, as JSON; the picture of it lies beside it."""
        return self.path / "sensitivity.json"


@dataclass(frozen=True)
class Search:
    """A study and what its trials need."""

    recipe: Recipe
    space: Space
    study: Any
    folder: StudyDir
    bench: Bench
    notify: Progress
    points: int | None = None
    """How many points were planned, where the trials are those and not a sampler's."""

    @property
    def is_planned(self) -> bool:
        """Whether each trial is a point that was planned."""
        return self.points is not None

    @property
    def most_trials(self) -> int:
        """With which the study ends, if not before."""
        if self.points is not None:
            return self.points
        table = self.recipe.tune
        return min(table.trials, grid_size(self.space)) if table.sampler == "grid" else table.trials

    @property
    def directions(self) -> tuple[str, ...]:
        """Of the objectives."""
        return directions(self.recipe)


def open_search(
    recipe: Recipe,
    folder: StudyDir,
    *,
    force: bool = False,
    bench: Bench | None = None,
    progress: Progress | None = None,
) -> Search:
    """The study of a recipe, new or gone on with, ready for trials; `bench` is where they are made, by default one for
    the recipe's base and data. Raises as `search` does.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder.path}: cannot be made: {error.strerror}", cure="choose another --out") from None
    storage = open_storage(recipe.tune.storage or file_url(folder.database))
    if force:
        _forget(storage, recipe.name, folder)
    bench = bench or Workbench(recipe, folder.path)
    rate = bench.learning_rate
    space = read_space(recipe, learning_rate=rate)
    recipe = dataclasses.replace(recipe, tune=settled(recipe.tune, space))
    common: dict[str, Any] = {"storage": storage, "study_name": recipe.name, "pruner": make_pruner(recipe.tune)}
    try:
        study, is_new = optuna.create_study(**common, directions=list(directions(recipe))), True
    except optuna.exceptions.DuplicatedStudyError:
        study, is_new = optuna.load_study(**common), False
    study.sampler = SeededSampler(study, recipe.tune, space)
    found = Search(recipe, space, study, folder, bench, progress or silent)
    if not is_new:
        _wait_for_claim(study)
    _claim(found, rate)
    return found


def _wait_for_claim(study: optuna.Study) -> None:
    """Until the worker that made the study has said what it is of, or has had time enough to have died before that:
    workers that begin together queue its first trials once.
    """
    deadline = time.monotonic() + CLAIM_S
    while IDENTITY not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.2)


def directions(recipe: Recipe) -> tuple[str, ...]:
    """What is better of each objective, in Optuna's words."""
    is_loss = recipe.evaluate.metric == "loss"
    upwards = {"tokens_per_s"} if is_loss else {"tokens_per_s", "score"}
    return tuple("maximize" if name in upwards else "minimize" for name in recipe.tune.objectives)


def _claim(found: Search, learning_rate: float) -> None:
    """Say what the study is of, and queue what it begins with; or hold it against what it says.

    Raises RunError if it is of another recipe, base or data.
    """
    mine, study = identity(found.recipe, found.space, found.bench.base_sha256), found.study
    theirs = study.user_attrs.get(IDENTITY)
    if theirs is None:
        if found.recipe.tune.warm_start and found.recipe.tune.sampler != "grid":
            _begin_warm(found, learning_rate)
        study.set_user_attr(IDENTITY, mine)
        return
    if told := differences(mine, theirs):
        raise RunError(
            f"{found.recipe.name}: the study holds trials of another recipe: {'; '.join(told[:4])}",
            cure="choose another folder with --out, rename the recipe, or begin anew with --force",
        )


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """In what two identities differ, a text for each."""
    different = [key for key in mine if mine[key] != theirs.get(key)]
    told = [f"{key} is {theirs.get(key)!r} there, {mine[key]!r} here" for key in different if key != "data_sha256"]
    return told + (["the data are not the same"] if "data_sha256" in different else [])


def identity(recipe: Recipe, space: Space, base_sha256: str) -> dict[str, Any]:
    """What decides a trial's score beside its values, flat and JSON-able; what a space changes is left out."""
    found = dict[str, Any]()
    for table in (name for name in TABLES if name not in ("tune", "budget")):
        for key, value in dataclasses.asdict(getattr(recipe, table)).items():
            if f"{table}.{key}" not in space:
                found[f"{table}.{key}"] = list(value) if isinstance(value, tuple) else value
    del found["model.base"]  # its content counts, not its path
    local = [name for name in (recipe.data.train, recipe.data.eval) if name and not is_hub_id(name)]
    contents = [content_hashes(name, split) for name in local for split in splits(name) or (None,)]
    return {
        **{key: value for key, value in found.items() if key not in ("data.train", "data.eval", "data.test")},
        "base_sha256": base_sha256,
        "data_sha256": hash_values(contents),
        "tune.space": describe(space),
        "tune.score_of": recipe.tune.score_of,
        "tune.objectives": list(recipe.tune.objectives),
    }


def _begin_warm(found: Search, learning_rate: float) -> None:
    """Queue the recipe's own values, then the best of other studies on the same base: in this database, and in those
    of the folders beside this one.
    """
    queued = [values_of(found.recipe, found.space, learning_rate=learning_rate)]
    queued += list(_earlier(found))[:WARM_TRIALS]
    for values in queued:
        if values:
            found.study.enqueue_trial({name: encoded(value) for name, value in values.items()}, skip_if_exists=True)


def _earlier(found: Search) -> Iterator[dict[str, Any]]:
    """The best values of each other study that scored the same base in the same way."""
    mine = identity(found.recipe, found.space, found.bench.base_sha256)
    files = sorted(found.folder.path.absolute().parent.glob(f"*/{found.folder.database.name}"))
    others = [open_storage(file_url(file)) for file in files if file != found.folder.database.absolute()]
    for storage in [found.study._storage, *others]:
        with contextlib.ExitStack() as stack, contextlib.suppress(EdgeTuneError):
            if storage in others:
                stack.callback(close, storage)
            for summary in optuna.get_all_study_summaries(storage):
                theirs = summary.user_attrs.get(IDENTITY, {})
                is_alike = all(theirs.get(key) == mine[key] for key in ALIKE)
                if is_alike and (storage, summary.study_name) != (found.study._storage, found.study.study_name):
                    other = optuna.load_study(study_name=summary.study_name, storage=storage)
                    yield from (fits(trial.params, found.space) for trial in best_trials(other)[:1])


def _forget(storage: Any, name: str, folder: StudyDir) -> None:
    """Remove a study and what it left in its folder."""
    for known in optuna.get_all_study_names(storage):
        if known == name or known.startswith(f"{name}{PLANNED}"):
            optuna.delete_study(study_name=known, storage=storage)
    shutil.rmtree(folder.trials, ignore_errors=True)
    for file in (folder.results, folder.best, folder.sensitivity, folder.sensitivity.with_suffix(".png")):
        file.unlink(missing_ok=True)


def spent(study: Any) -> dict[str, float]:
    """What a study's trials have used: finished ones, those under way, minutes and tokens of all."""
    trials = study.get_trials(deepcopy=False)
    return {
        "trials": sum(trial.state in FINISHED for trial in trials),
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "minutes": sum(float(trial.user_attrs.get("wall_s", 0.0)) for trial in trials) / 60,
        "tokens": sum(int(trial.user_attrs.get("tokens", 0)) for trial in trials if trial.state in FINISHED),
    }


def has_budget(found: Search) -> bool:
    """Whether minutes and tokens are left, where [tune] counts them."""
    table, used = found.recipe.tune, spent(found.study)
    return used["minutes"] < (table.minutes or float("inf")) and used["tokens"] < (table.tokens or float("inf"))
