"""What the tables of a recipe say against each other. Nothing is changed: what cannot stand is a problem."""

from __future__ import annotations

from collections.abc import Collection

from edgetune.recipe.changes import changes_problem
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.tables import CALIBRATED, INT2_BLOCK_SIZES, TrainTable
from edgetune.recipe.task import TASKS


def problem_with(recipe: Recipe, *, stated: Collection[str] = ()) -> str | None:
    """What two keys of a recipe say against each other, if anything; `stated` are the tables that its file has.

    For a recipe whose values were changed in memory none is stated.
    """
    return (
        _task_problem(recipe, stated)
        or _rounding_problem(recipe)
        or _tuning_problem(recipe)
        or _population_problem(recipe)
        or changes_problem(recipe)
        or _plateau_problem(recipe.train)
        or _pair_problem(recipe)
    )


def _task_problem(recipe: Recipe, stated: Collection[str]) -> str | None:
    """What is only for another task, if anything."""
    if problem := recipe.of_task.problem(recipe):
        return problem
    metric = recipe.evaluate.metric
    for name, task in TASKS.items():
        if name == recipe.model.task:
            continue
        for table in task.tables:
            if table in stated:
                return f'[{table}]: needs model.task = "{name}"'
        if metric in task.metrics and metric not in recipe.of_task.metrics:
            return f'evaluate.metric = "{metric}": needs model.task = "{name}"'
    return None


def _pair_problem(recipe: Recipe) -> str | None:
    """A key that needs another one, or that another one rules out, if any."""
    if recipe.evaluate.folds_by is not None and recipe.evaluate.folds is None:
        return "evaluate.folds_by: groups the rows of folds; set evaluate.folds too"
    if recipe.train.offload_activations and recipe.train.gradient_checkpointing is False:
        return "train.offload_activations: moves what gradient_checkpointing keeps; set that too"
    if recipe.model.embedding_quantization != "none" and recipe.lora.train_embeddings:
        return "lora.train_embeddings: trains what model.embedding_quantization freezes; leave one of the two out"
    if recipe.evaluate.metric == "check" and recipe.evaluate.check is None:
        return 'evaluate.metric = "check": name the Python file in evaluate.check'
    return None


def _plateau_problem(table: TrainTable) -> str | None:
    """What schedule = "plateau" has against other keys, or they have without it, if anything."""
    if table.schedule != "plateau":
        is_default = table.plateau_patience == TrainTable.plateau_patience
        told = f'has no effect on schedule = "{table.schedule}"; take "plateau", or leave it out'
        return None if is_default else f"train.plateau_patience: {told}"
    stop = table.early_stopping_patience
    if stop is not None and stop <= table.plateau_patience:
        return (
            f"train.early_stopping_patience = {stop}: ends training before plateau_patience = "
            f"{table.plateau_patience} has lowered the learning rate; raise it"
        )
    return None


def _rounding_problem(recipe: Recipe) -> str | None:
    """What the keys of [export] that say how weights are rounded have against each other, if anything."""
    table = recipe.export
    if table.method in CALIBRATED and not table.calibration_rows:
        return f'export.method = "{table.method}": has no rows; raise export.calibration_rows, or take "search"'
    if table.precision not in ("int2", "int4") and table.int8_layers and not recipe.is_idle("export.int8_layers"):
        return f'export.int8_layers: has no effect on precision = "{table.precision}"; leave it out'
    if table.precision == "int2" and (table.block_size not in INT2_BLOCK_SIZES or table.accuracy_level != 4):
        sizes = ", ".join(map(str, INT2_BLOCK_SIZES))
        return f'export.precision = "int2": onnxruntime is fast with block_size {sizes} and accuracy_level 4 only'
    return None


def _tuning_problem(recipe: Recipe) -> str | None:
    """What the keys of [tune] have against each other, or against the others, if anything."""
    table = recipe.tune
    wanted = table.objectives
    if not wanted or len(set(wanted)) < len(wanted):
        return "tune.objectives: names each objective once, and at least one"
    if len(wanted) > 1 and table.pruner not in ("auto", "none"):
        return f'tune.pruner = "{table.pruner}": gives trials up by one objective, there are {len(wanted)}'
    if len(wanted) > 1 and table.sampler == "cmaes":
        return 'tune.sampler = "cmaes": seeks one objective; take "tpe" or "gp" for several'
    return None


def _population_problem(recipe: Recipe) -> str | None:
    """What [tune] or [train] has against population-based training, or only makes sense with it, if anything."""
    table, train = recipe.tune, recipe.train
    if table.population is None:
        for key in ("workers", "ray_address"):
            if getattr(table, key) is not None:
                return f"tune.{key}: is of population-based training; set tune.population too"
        return None
    budget = "a population trains each member once, as [train] says; leave it out"
    alone = {
        "tune.minutes": budget if table.minutes is not None else None,
        "tune.tokens": budget if table.tokens is not None else None,
        "tune.workers": f"{table.workers} for a population of {table.population}; at most one for each member"
        if (table.workers or 0) > table.population
        else None,
        "tune.storage": "a population is kept in its folder; leave it out" if table.storage is not None else None,
        "tune.objectives": 'of a population only ["score"] or ["loss"]'
        if table.objectives not in (("score",), ("loss",))
        else None,
        "evaluate.folds": "a population is scored on the eval rows; leave it out"
        if recipe.evaluate.folds is not None
        else None,
        "train.early_stopping_patience": "would end a member while the others go on; leave it out of a population"
        if train.early_stopping_patience is not None
        else None,
        "train.changes": "a population finds them; leave them out" if train.changes else None,
        "train.on_overfitting": "a population changes dropout and weight decay itself; leave it out"
        if train.on_overfitting != "warn"
        else None,
    }
    return next((f"{key}: {reason}" for key, reason in alone.items() if reason), None)
