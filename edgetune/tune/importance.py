"""Which keys a search's scores depend on, alone and two at a time: functional ANOVA over a random forest.

Source: Hutter, Hoos, Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance. Keys alone by
Optuna's evaluator; pairs, which it does not have, by the same decomposition on a forest of scikit-learn's, its
marginals taken over a fixed sample of the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from edgetune.tune.findings import values_in
from edgetune.tune.sampling import RUNGS
from edgetune.tune.space import Choices, Range, Space, same

LEAST_TRIALS, LEAST_PER_KEY = 8, 2
"""Trials, in all and for each key, below which a forest says nothing."""
GRID, SAMPLE, TREES = 12, 256, 64
PAIRS = (("train.learning_rate", "train.batch_size"), ("train.batch_size", "train.epochs"))
"""Pairs of which it is known that one asks for the other."""


@dataclass(frozen=True)
class Pair:
    """Two keys together."""

    keys: tuple[str, str]
    share: float
    """Of the scores' variance over the space, what the two explain together beyond each alone."""
    axes: tuple[tuple[Any, ...], tuple[Any, ...]]
    """Values of either key."""
    expected: tuple[tuple[float, ...], ...]
    """The objective that the forest expects, all other keys averaged out: rows the second key, columns the first."""


@dataclass(frozen=True)
class Early:
    """What a loss during training depends on, that of trials given up included."""

    after: float
    """Share of the training after which all these trials have an eval loss."""
    trials: int
    shares: Mapping[str, float]


def least_trials(space: Space) -> int:
    """How many trials it takes to tell what matters."""
    return max(LEAST_TRIALS, LEAST_PER_KEY * len(space))


def importances(study: Any, space: Space, *, seed: int) -> dict[str, float] | None:
    """Share of the variance of the first objective that each key explains alone, greatest first; None of few trials.

    Of measured trials: those that were given up have no score. `early_importances` has them.
    """
    if len(_measured(study)) < least_trials(space):
        return None
    return _shares(study, space, seed)


def early_importances(study: Any, space: Space, *, seed: int) -> Early | None:
    """The same of the eval loss at the latest tenth of a training at which every trial that was looked at has one.

    None where no trial was given up on its eval loss, or of few trials.
    """
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    trials = [trial for trial in found if trial.intermediate_values]
    rungs = set.intersection(*(set(trial.intermediate_values) for trial in trials)) if trials else set()
    is_cut = any(trial.state == TrialState.PRUNED for trial in trials)
    if not is_cut or not rungs or len(trials) < least_trials(space):
        return None
    rung, early = max(rungs), optuna.create_study()
    early.add_trials(
        optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=abs(trial.intermediate_values[rung])
        )
        for trial in trials
    )
    return Early(rung / RUNGS, len(trials), _shares(early, space, seed))


def told(study: Any, space: Space, alone: Mapping[str, float] | None, early: Early | None) -> str:
    """What stands behind the importances, or why there are none, in one line."""
    measured = len(_measured(study))
    lost = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    if alone is None:
        said = (
            f"{measured} measured trials are too few to say what matters: {least_trials(space)} for {len(space)} keys"
        )
    else:
        said = f"by the scores of {measured} measured trials"
        said += f"; {lost} that were given up have none" if lost else ""
    if early is None:
        return said
    top = ", ".join(f"{name} {share:.0%}" for name, share in list(early.shares.items())[:3])
    return f"{said}; by the eval loss after {early.after:.0%} of the training, of {early.trials} trials: {top}"


def _shares(study: Any, space: Space, seed: int) -> dict[str, float]:
    """What each key explains alone, by Optuna's fANOVA, greatest first."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # with scikit-learn: a second

    found = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=seed),
        params=list(space),
        target=lambda trial: float(trial.values[0]),
        normalize=False,
    )
    return {name: float(share) for name, share in found.items()}


def interactions(study: Any, space: Space, alone: Mapping[str, float], *, seed: int) -> list[Pair]:
    """PAIRS where both keys are searched, and the pair of the two keys that matter most; [] of few trials."""
    trials = _measured(study)
    if len(trials) < least_trials(space):
        return []
    top = sorted(alone, key=lambda name: -alone[name])[:2]
    pairs = [pair for pair in PAIRS if set(pair) <= set(space)]
    if len(top) == 2 and not any(set(top) == set(pair) for pair in pairs):
        pairs.append((top[0], top[1]))
    forest = _forest(trials, space, seed)
    return [_pair(forest, space, keys, seed) for keys in pairs]


def _measured(study: Any) -> list[FrozenTrial]:
    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def _forest(trials: Sequence[FrozenTrial], space: Space, seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    rows = np.array([[_place(space[name], value) for name, value in values_in(t, space).items()] for t in trials])
    forest = RandomForestRegressor(n_estimators=TREES, random_state=seed)
    return forest.fit(rows, np.array([trial.values[0] for trial in trials]))


def _pair(forest: Any, space: Space, keys: tuple[str, str], seed: int) -> Pair:
    """The pair's share, by the variances of its marginals over the space; its expected values at the grid's points."""
    names, generator = list(space), np.random.default_rng(seed)
    first, second = (names.index(key) for key in keys)
    sample = np.stack([_draw(space[name], generator) for name in names], axis=1)
    axes = [space[key].points(GRID) for key in keys]
    places = [[_place(space[key], value) for value in axis] for key, axis in zip(keys, axes, strict=True)]
    table = np.array([[sample] * len(places[0])] * len(places[1]))  # (second, first, sample, keys)
    table[..., first] = np.array(places[0])[None, :, None]
    table[..., second] = np.array(places[1])[:, None, None]
    expected = forest.predict(table.reshape(-1, len(names))).reshape(table.shape[:3]).mean(-1)
    both = expected.var()
    alone = expected.mean(0).var() + expected.mean(1).var()
    whole = forest.predict(sample).var()
    share = float(max(0.0, both - alone) / whole) if whole > 0 else 0.0
    rows = tuple(tuple(map(float, row)) for row in expected)
    return Pair(keys, min(share, 1.0), (tuple(axes[0]), tuple(axes[1])), rows)


def _draw(item: Range | Choices, generator: np.random.Generator) -> Any:
    """SAMPLE places of a key, evenly over its range or among its choices."""
    if isinstance(item, Choices):
        return generator.choice([_place(item, value) for value in item.values], SAMPLE)
    return generator.random(SAMPLE)


def _place(item: Range | Choices, value: Any) -> float:
    """Where a value lies in its range or among its choices, 0 to 1."""
    if isinstance(item, Choices):
        at = next((at for at, choice in enumerate(item.values) if same(choice, value)), 0)
        return at / max(1, len(item.values) - 1)
    low, high = float(item.low), float(item.high)
    if item.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
