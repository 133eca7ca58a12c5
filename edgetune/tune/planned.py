"""Planned trials: a list of points, each trained and scored once, whatever a sampler would say.

They are kept as a study of their own beside the search's, so that several workers share them and a killed one goes on.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from edgetune.tune.run import REASON, run_trials
from edgetune.tune.space import as_text
from edgetune.tune.storage import POINT, VALUES
from edgetune.tune.study import FINISHED, PLANNED, Search, has_budget

NOT_MADE = "not made"
"""Why a point has no objective that was not trained, and was not given up either."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A point as it came out."""

    values: Mapping[str, Any]
    """Keys like "train.seed" -> what was set beside the recipe."""
    objective: float | None
    """The first one; None where the trial was given up, or not made for lack of budget."""
    loss: float | None
    reason: str | None

    @property
    def is_made(self) -> bool:
        """Whether it was trained, or given up: it will not be tried again."""
        return self.reason != NOT_MADE


def run_points(found: Search, name: str, points: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Train and score the recipe with each point's values, those of an earlier call aside; outcomes in order.

    tune.minutes and tune.tokens, where they are set, hold for these trials alone. Raises what trials raise.
    """
    study = _study(found, name)
    wanted = {_number(values): dict(values) for values in points}
    for number, values in wanted.items():
        study.enqueue_trial({POINT: number}, user_attrs={VALUES: values}, skip_if_exists=True)
    planned = dataclasses.replace(found, study=study, points=len(set(wanted) | set(_finished(study))))
    run_trials(planned, lambda planned: _is_next(planned, wanted))
    return outcomes_so_far(found, name, points)


def outcomes_so_far(found: Search, name: str, points: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """What `run_points` has of each point by now, in order; nothing is trained."""
    done = _finished(_study(found, name))
    return [_outcome(values, done.get(_number(values))) for values in points]


def _study(found: Search, name: str) -> optuna.Study:
    """The planned trials of that name, new or gone on with."""
    return optuna.create_study(
        storage=found.study._storage,
        study_name=f"{found.study.study_name}{PLANNED}{name}",
        directions=list(found.directions),
        sampler=RandomSampler(seed=0),
        pruner=NopPruner(),
        load_if_exists=True,
    )


def _is_next(planned: Search, wanted: Mapping[int, Any]) -> bool | None:
    """Whether a point is to be trained now; None while only other workers have any."""
    if not has_budget(planned) or not set(wanted) - set(_finished(planned.study)):
        return False
    states = {trial.state for trial in planned.study.get_trials(deepcopy=False)}
    if TrialState.WAITING in states:
        return True
    return None if TrialState.RUNNING in states else False  # what is left then killed its process each time


def _finished(study: Any) -> dict[int, FrozenTrial]:
    """Trials that were measured or given up, by their points."""
    done = study.get_trials(deepcopy=False, states=FINISHED)
    return {_number(trial.user_attrs[VALUES]): trial for trial in done if VALUES in trial.user_attrs}


def _number(values: Mapping[str, Any]) -> int:
    """A number for a point, the same for the same values."""
    text = json.dumps({name: as_text(value) for name, value in values.items()}, sort_keys=True)
    return zlib.crc32(text.encode()) >> 1


def _outcome(values: Mapping[str, Any], trial: FrozenTrial | None) -> Outcome:
    if trial is None:
        return Outcome(values, None, None, NOT_MADE)
    objective = trial.values[0] if trial.values else None
    return Outcome(values, objective, trial.user_attrs.get("loss"), trial.user_attrs.get(REASON))
