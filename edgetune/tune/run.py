"""Trials that run: values of the study -> recipe -> trained and scored -> the study, whatever becomes of them.

A trial is given up when the planner says that it cannot fit, when memory runs out, when it diverges, and when the
pruner says so; the reason is kept. One that is broken off is queued again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from edgetune.errors import DivergedError, OutOfMemoryError, RecipeError
from edgetune.tune.findings import best_trials, values_in
from edgetune.tune.sampling import REDUCTION, RUNGS, suggest
from edgetune.tune.space import recipe_with
from edgetune.tune.storage import POINT, VALUES, WORKER, break_off, one_at_a_time, original, reap, this_worker
from edgetune.tune.study import FINISHED, Search, spent

STAGE = "tune"
REASON, TWIN = "reason", "same_as"
"""Attributes of a trial: why it was given up; the trial whose values it has."""
POLL_S = 2.0
"""Between two looks at what other workers do."""
MOST_POINTS = 2**31 - 1


def run_trials(found: Search, is_next: Callable[[Search], bool | None]) -> None:
    """Trials, one after the other, while `is_next` says that one is to begin; it says None while only other workers
    have any, which may be broken off.

    Of a study's workers only one at a time looks and begins: together they make no trial too many.
    """
    is_told = False
    while True:
        with contextlib.ExitStack() as turn:
            turn.enter_context(one_at_a_time(found.study._storage, found.study.study_name))
            for number in reap(found.study):
                found.notify({"stage": STAGE, "message": f"trial {number} was broken off; it is taken up again"})
            is_to_begin = is_next(found)
            if is_to_begin:
                _run_next(found, begin=turn.close)
        if is_to_begin is False:
            return
        if is_to_begin is None:
            if not is_told:
                running = int(spent(found.study)["running"])
                found.notify({"stage": STAGE, "message": f"waiting for {running} trials of other workers"})
                is_told = True
            time.sleep(POLL_S)
            optuna.storages.fail_stale_trials(found.study)


def _run_next(found: Search, *, begin: Callable[[], None]) -> None:
    """One trial, begun to finished, `begin` called between; one that was broken off is queued again before the
    exception goes on.
    """
    begun: list[int] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        begun.append(trial.number)
        trial.set_user_attr(WORKER, this_worker())
        begin()
        return _try(found, trial)

    try:
        found.study.optimize(objective, n_trials=1)
    except BaseException:
        if begun:
            break_off(found.study, begun[0])
        raise
    _tell(found, begun[0])


def _try(found: Search, trial: optuna.Trial) -> tuple[float, ...]:
    """The objectives of a trial's values. Raises TrialPruned, its reason noted, for one that is given up."""
    values = _values(found, trial)
    if twin := _twin(found.study, trial):
        return _as_twin(trial, twin)
    try:
        recipe = recipe_with(found.recipe, values)
    except RecipeError as error:
        raise _give_up(trial, f"the recipe refuses it: {error.message}") from None
    needed, allowed = found.bench.peak_bytes(recipe), found.bench.room_bytes(recipe)
    if needed > allowed:
        told = f"needs {needed / 1024**2:,.0f} MiB, {allowed / 1024**2:,.0f} MiB are there"
        raise _give_up(trial, f"cannot fit: {told}")
    folder = found.folder.trials / f"trial-{original(_frozen(found.study, trial.number)):05d}"
    watch = _Watch(found, trial)
    try:
        measured = found.bench.measure(recipe, folder, progress=watch)
    except OutOfMemoryError:
        raise _give_up(trial, "memory ran out") from None
    except DivergedError as error:
        raise _give_up(trial, f"diverged: {error.message}") from None
    except optuna.TrialPruned:
        raise _give_up(trial, f"its eval loss after {watch.share:.0%} of the training was not good enough") from None
    finally:
        watch.note_cost()
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in dataclasses.asdict(measured).items():
        trial.set_user_attr(name, value)
    return tuple(measured.objective(name, recipe) for name in recipe.tune.objectives)


def _values(found: Search, trial: optuna.Trial) -> dict[str, Any]:
    """What the trial is to try: by the sampler, or the point that it stands for."""
    if not found.is_planned:
        return suggest(trial, found.space)
    trial.suggest_int(POINT, 0, MOST_POINTS)
    return dict(_frozen(found.study, trial.number).user_attrs[VALUES])


class _Watch:
    """What a training reports: passed on, its eval losses told to the pruner, its cost noted in the trial."""

    def __init__(self, found: Search, trial: optuna.Trial) -> None:
        self._found, self._trial = found, trial
        self._reported = set(_frozen(found.study, trial.number).intermediate_values)
        self._is_single = len(found.directions) == 1
        self._sign = -1.0 if found.directions[0] == "maximize" else 1.0
        self._started, self._tokens = time.perf_counter(), 0
        self._stage = _title(found, trial.number)
        self.share = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._tokens = int(event.get("tokens", self._tokens))
        if "message" not in event:
            self._found.notify({**event, "stage": f"{self._stage} {event.get('stage', '')}".rstrip()})
        if "train_loss" not in event or not self._is_single:
            return
        self.share = event["step"] / event["steps"]
        rung = max(1, int(self.share * RUNGS + 1e-9))
        if rung in self._reported:
            return
        self._reported.add(rung)
        self._trial.report(self._sign * event["eval_loss"], rung)
        is_early = spent(self._found.study)["trials"] < REDUCTION
        if self.share < 1.0 and not is_early and self._trial.should_prune():
            raise optuna.TrialPruned

    def note_cost(self) -> None:
        """Seconds and tokens so far; measured ones replace them."""
        self._trial.set_user_attr("wall_s", time.perf_counter() - self._started)
        self._trial.set_user_attr("tokens", self._tokens)


def _twin(study: Any, trial: optuna.Trial) -> FrozenTrial | None:
    """A trial that had the same values and was measured, or could not be."""
    others = study.get_trials(deepcopy=False, states=FINISHED)
    return next((other for other in others if other.params == trial.params and TWIN not in other.user_attrs), None)


def _as_twin(trial: optuna.Trial, twin: FrozenTrial) -> tuple[float, ...]:
    """The values of the same training, which is not made twice."""
    trial.set_user_attr(TWIN, twin.number)
    if twin.state == TrialState.PRUNED:
        raise _give_up(trial, f"as trial {twin.number}: {twin.user_attrs.get(REASON, '')}")
    for name in ("score", "loss", "eval_loss"):
        trial.set_user_attr(name, twin.user_attrs.get(name))
    return tuple(twin.values)


def _give_up(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
    trial.set_user_attr(REASON, reason)
    return optuna.TrialPruned(reason)


def _frozen(study: Any, number: int) -> FrozenTrial:
    trial: FrozenTrial = study.get_trials(deepcopy=False)[number]
    return trial


def _title(found: Search, number: int) -> str:
    """What stands before the progress of a trial: its place among all, and what is to be beaten."""
    best = best_trials(found.study)
    told = f" (best {best[0].values[0]:.4g})" if best else ""
    return f"trial {number}, {int(spent(found.study)['trials']) + 1} of {found.most_trials}{told}"


def _tell(found: Search, number: int) -> None:
    """A line about a trial that has just ended: what it came to, with which values, and where the study stands."""
    trial, study = _frozen(found.study, number), found.study
    used, table = spent(study), found.recipe.tune
    if trial.state == TrialState.PRUNED:
        outcome = f"given up: {trial.user_attrs.get(REASON, '')}"
    else:
        names = zip(table.objectives, trial.values, strict=True)
        outcome = ", ".join(f"{name} {value:.4g}" for name, value in names)
    values = trial.user_attrs[VALUES] if found.is_planned else values_in(trial, found.space)
    tried = ", ".join(f"{name.partition('.')[2]} {_short(value)}" for name, value in values.items())
    best = best_trials(study)
    told = f"; best so far: trial {best[0].number} with {best[0].values[0]:.4g}" if best else ""
    left = max(0, found.most_trials - int(used["trials"]))
    others = f"{used['running']:.0f} under way on other workers"
    found.notify(
        {"stage": STAGE, "message": f"trial {number}: {outcome} ({tried}){told}; {left} trials left, {others}"}
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
