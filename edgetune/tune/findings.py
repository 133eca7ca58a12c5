"""What a study has found: trials in order, the best values, tune.json and best.toml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from edgetune.tune.sampling import decoded
from edgetune.tune.space import Space
from edgetune.tune.storage import WORKER


def _order(study: Any) -> Callable[[FrozenTrial], tuple[float, float, int]]:
    """Trials of one objective, best first; equal scores by their loss, then the earlier one."""
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return lambda trial: (sign * trial.values[0], float(trial.user_attrs.get("loss") or 0.0), trial.number)


def best_trials(study: Any) -> list[FrozenTrial]:
    """Measured trials, best first; of several objectives the Pareto front, in order of the first."""
    if len(study.directions) == 1:
        return sorted(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=_order(study))
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    return sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))


def values_in(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """A finished trial's values, as recipes have them."""
    return {name: decoded(trial.params[name], item) for name, item in space.items() if name in trial.params}


def row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """A trial as JSON-able values."""
    kept = {name: value for name, value in trial.user_attrs.items() if name != WORKER}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "values": values_in(trial, space),
        "objectives": list(trial.values) if trial.values else None,
        "eval_losses": {str(rung): abs(value) for rung, value in trial.intermediate_values.items()},
        **kept,
    }
