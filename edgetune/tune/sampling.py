"""Optuna's samplers and pruners, made by [tune]; and the values that they give to a space.

A sampler is made anew for each trial, its seed a function of tune.seed and the trial's place among them: a study that
was stopped and goes on asks for what it would have asked for.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from edgetune.recipe import TuneTable
from edgetune.tune.space import Choices, Range, Space, as_text
from edgetune.tune.storage import original

RUNGS = 10
"""A training's length in the pruners' units: a trial is looked at in tenths of its own schedule."""
FIRST_RUNG = 2
"""Before that a loss says more about the warm-up than about the values."""
REDUCTION = 3
"""Of the trials that reach a rung, one in so many goes on; before so many have ended none is given up."""
STARTUP_TRIALS = 6
"""Drawn at random before a model of the scores is made, warm starts among them."""
GP_TRIALS = 100
"""From so many trials on Optuna advises TPE; with fewer a Gaussian process found better (benchmarks/README.md)."""


def settled(table: TuneTable, space: Space) -> TuneTable:
    """[tune] with sampler = "auto" decided.

    A space of choices and steps that `trials` covers, and neither minutes nor tokens cut short, is gone through whole.
    Else a Gaussian process, below GP_TRIALS trials and where half of the keys are ranges at least: it takes choices for
    unordered, one as far from any other. Else TPE.
    """
    if table.sampler != "auto":
        return table
    ranges = [item for item in space.values() if isinstance(item, Range)]
    is_finite = all(item.step is not None for item in ranges) and table.minutes is None and table.tokens is None
    name: Literal["grid", "gp", "tpe"] = "tpe"
    if is_finite and grid_size(space) <= table.trials:
        name = "grid"
    elif table.trials < GP_TRIALS and 2 * len(ranges) >= len(space):
        name = "gp"
    return dataclasses.replace(table, sampler=name)


class SeededSampler(BaseSampler):
    """[tune] sampler, its random numbers a function of tune.seed and of the trial."""

    def __init__(self, study: Any, table: TuneTable, space: Space) -> None:
        """`study`, whole: what Optuna hands in below are the trials of one bracket of Hyperband."""
        self._study, self._table, self._space = study, table, space
        self._inner: BaseSampler = RandomSampler(seed=table.seed)

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        first = original(trial)
        earlier = self._study.get_trials(deepcopy=False)[:first]
        place = sum(original(other) == other.number for other in earlier)
        self._inner = _sampler(self._table, self._space, zlib.crc32(f"{self._table.seed} {place}".encode()))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler of this trial has it."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler of this trial has it."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler of this trial has it."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """CMA-ES keeps its state in the trial."""
        if not isinstance(self._inner, GridSampler):  # that would end a study in which trials are taken up again
            self._inner.after_trial(study, trial, state, values)


def _sampler(table: TuneTable, space: Space, seed: int) -> BaseSampler:
    if table.sampler == "random":
        return RandomSampler(seed=seed)
    if table.sampler == "grid":
        return grid_sampler(table, space)
    if table.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    if table.sampler == "cmaes":
        return CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
    return TPESampler(
        seed=seed,
        n_startup_trials=STARTUP_TRIALS,
        multivariate=len(table.objectives) == 1,  # keys together: one asks for another; of several objectives untried
        constant_liar=True,  # what other workers try at this moment is not proposed again
    )


def grid_sampler(table: TuneTable, space: Space) -> GridSampler:
    """Every combination once, in an order that the seed shuffles."""
    points = {name: [encoded(point) for point in item.points()] for name, item in space.items()}
    return GridSampler(points, seed=table.seed)


def grid_size(space: Space) -> int:
    """How many combinations a grid of the space has."""
    size = 1
    for item in space.values():
        size *= len(item.points())
    return size


def make_pruner(table: TuneTable) -> BasePruner:
    """[tune] pruner, over tenths of a training.

    With a Gaussian process "auto" is none: it learns from whole trials alone, and proposes what was given up again.
    """
    name = table.pruner
    if name == "auto":
        name = "none" if len(table.objectives) > 1 or table.sampler == "gp" else "halving"
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION)
    if name == "hyperband":
        return HyperbandPruner(min_resource=FIRST_RUNG, max_resource=RUNGS, reduction_factor=REDUCTION)
    return NopPruner()


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value for each key of the space, as recipes have them."""
    values: dict[str, Any] = {}
    for name, item in space.items():
        if isinstance(item, Choices):
            found = trial.suggest_categorical(name, [encoded(value) for value in item.values])
        elif item.is_integer:
            found = trial.suggest_int(name, int(item.low), int(item.high), step=int(item.step or 1), log=item.log)
        else:
            found = trial.suggest_float(name, item.low, item.high, step=item.step, log=item.log)
        values[name] = decoded(found, item)
    return values


def encoded(value: Any) -> Any:
    """A value as a study holds it: a list as its JSON."""
    return as_text(value) if isinstance(value, list | tuple) else value


def decoded(value: Any, item: Range | Choices) -> Any:
    """What was encoded."""
    if isinstance(item, Choices):
        return next((choice for choice in item.values if encoded(choice) == value), value)
    return value


def fits(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Of a study's parameters those that this space has, encoded."""
    return {
        name: value for name, value in params.items() if name in space and space[name].has(decoded(value, space[name]))
    }
