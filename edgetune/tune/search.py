"""The search: trials one after another until the budget is used up; what was found.

In the flow: study -> trials (run.py) -> tune.json, best.toml. Goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.errors import OutOfMemoryError, RunError, is_stop
from edgetune.files import write_json, write_text
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.tune.confirm import Confirmation, confirm
from edgetune.tune.findings import best_trials, row, values_in
from edgetune.tune.importance import Pair, early_importances, importances, interactions, told
from edgetune.tune.pictures import (
    draw_front,
    draw_history,
    draw_importances,
    draw_interactions,
    draw_parallel,
    draw_slices,
)
from edgetune.tune.run import REASON, STAGE, run_trials
from edgetune.tune.space import describe, read_space, recipe_with
from edgetune.tune.storage import close, is_under_way, quiet_optuna, reached_database
from edgetune.tune.study import Search, StudyDir, has_budget, open_search, spent
from edgetune.tune.trial import Bench


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended, or stands at the end of its budget."""

    folder: StudyDir
    values: Mapping[str, Any]
    """The best trial's, by keys like "train.learning_rate"; of several objectives those of the first of the front."""
    recipe: Recipe
    """With these values."""
    document: Mapping[str, Any]
    """As tune.json holds it."""
    confirmation: Confirmation | None = None


def search(
    recipe: Recipe,
    folder: StudyDir,
    *,
    force: bool = False,
    confirms: bool = False,
    bench: Bench | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Search until the budget of [tune] is used up; goes on with the study that is there, `force` begins anew.

    `confirms`: the best recipe and the one it began with are then trained with tune.seeds new seeds, and compared.
    `bench`: where trials are made, if not on the recipe's own base and data.

    Raises RecipeError for a space that cannot stand, RunError for a study of another recipe or a database that does not
    answer, Stopped after a signal (the trial under way is taken up again), OutOfMemoryError if no trial fits.
    """
    read_space(recipe, learning_rate=1e-4)  # what is wrong with it is known before anything is loaded
    with quiet_optuna(), reached_database(recipe.name):
        found = open_search(recipe, folder, force=force, bench=bench, progress=progress)
        try:
            _run(found)
            result = finish(found)
            return _confirmed(found, result) if confirms and recipe.tune.seeds > 1 else result
        finally:
            close(found.study._storage)


def _run(found: Search) -> None:
    """Trials until the budget is used up. What there is after a stop is written as at the end, before that goes on."""
    try:
        run_trials(found, _is_next)
    except BaseException as error:
        if is_stop(error) and best_trials(found.study):
            finish(found)
            found.notify(
                {
                    "stage": STAGE,
                    "message": f"stopped; what it found so far is in {found.folder.path}, and it goes on later",
                }
            )
        raise


def _is_next(found: Search) -> bool | None:
    """Whether a trial is to begin; None while the last ones are under way elsewhere."""
    used = spent(found.study)
    if not has_budget(found) or used["trials"] >= found.most_trials:
        return False
    return True if used["trials"] + used["running"] < found.most_trials else None


def _confirmed(found: Search, result: StudyResult) -> StudyResult:
    """The result with what other seeds say of it."""
    found.notify({"stage": STAGE, "message": "the best recipe and the one it began with, with other seeds"})
    confirmation = confirm(found, result.values, found.recipe.tune.seeds)
    document = {**result.document, "confirmation": dataclasses.asdict(confirmation)}
    write_json(found.folder.results, document)
    return dataclasses.replace(result, document=document, confirmation=confirmation)


def finish(found: Search) -> StudyResult:
    """What a study has found: tune.json and best.toml in its folder. Raises OutOfMemoryError if no trial was measured
    because none fits, RunError if none was for other reasons.
    """
    best = best_trials(found.study)
    if not best:
        raise _no_trial(found)
    values = values_in(best[0], found.space)
    recipe = dataclasses.replace(recipe_with(found.recipe, values), name=found.recipe.name)
    alone = importances(found.study, found.space, seed=found.recipe.tune.seed)
    early = early_importances(found.study, found.space, seed=found.recipe.tune.seed)
    pairs = interactions(found.study, found.space, alone or {}, seed=found.recipe.tune.seed)
    document = {
        "recipe": found.recipe.name,
        "metric": found.recipe.evaluate.metric,
        "score_of": found.recipe.tune.score_of,
        "objectives": list(found.recipe.tune.objectives),
        "directions": list(found.directions),
        "best": row(best[0], found.space),
        "front": [row(trial, found.space) for trial in best] if len(found.directions) > 1 else None,
        "spent": spent(found.study),
        "space": describe(found.space),
        "trials": [row(trial, found.space) for trial in found.study.get_trials(deepcopy=False)],
        "importances": alone,
        "early_importances": dataclasses.asdict(early) if early else None,
        "importances_told": told(found.study, found.space, alone, early),
        "interactions": [{"keys": list(pair.keys), "share": pair.share} for pair in pairs],
        "sampler": found.recipe.tune.sampler,
        "pruner": type(found.study.pruner).__name__,
        "seed": found.recipe.tune.seed,
        "provenance": provenance(found.recipe.train.seed),
    }
    write_json(found.folder.results, document)
    write_text(found.folder.best, recipe.to_toml())
    _draw(found, document, pairs)
    if not any(map(is_under_way, found.study.get_trials(deepcopy=False))):
        shutil.rmtree(found.folder.trials, ignore_errors=True)
    return StudyResult(found.folder, values, recipe, document)


def _draw(found: Search, document: Mapping[str, Any], pairs: list[Pair]) -> None:
    """history, slices and parallel coordinates; of several objectives the front; of enough trials what mattered."""
    folder = found.folder.path
    for picture in ("front", "importances", "interactions"):
        (folder / f"{picture}.png").unlink(missing_ok=True)  # of an earlier, shorter look
    draw_history(document, folder / "history.png")
    draw_slices(document, folder / "slices.png")
    draw_parallel(document, folder / "parallel.png")
    if document["front"]:
        draw_front(document, folder / "front.png")
    if views := _views(document):
        draw_importances(views, folder / "importances.png", title=found.recipe.name)
    if pairs:
        objective = found.recipe.tune.objectives[0]
        draw_interactions(pairs, document["trials"], folder / "interactions.png", objective=objective)


def _views(document: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Importances by what they are of: the score, and the eval loss at a time when no trial was given up yet."""
    early, views = document["early_importances"], {}
    if document["importances"]:
        views[document["objectives"][0]] = document["importances"]
    if early:
        views[f"eval loss after {early['after']:.0%} of the training"] = early["shares"]
    return views


def _no_trial(found: Search) -> Exception:
    reasons = [str(trial.user_attrs.get(REASON, trial.state.name.lower())) for trial in found.study.get_trials()]
    told = (
        f"{found.recipe.name}: none of {len(reasons)} trials was measured; the last: {reasons[-1] if reasons else '-'}"
    )
    if reasons and all(reason.startswith(("cannot fit", "memory")) for reason in reasons):
        return OutOfMemoryError(told, cure="search smaller values, or raise [budget]")
    return RunError(told, cure="look at the space, or raise tune.trials")
