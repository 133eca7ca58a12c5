"""New rows for a run: its adapter goes on, in a run folder of its own, and must not forget. `edgetune adapt` shows it.

In the flow: RUN's recipe, adapter and rows with new rows -> OUT/mixture -> scores of the adapter as it is -> training
-> the same scores again -> where the old rows' has not fallen too far, the other stages: OUT/bundle, held against RUN's
by the same rows.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.adapt_scores import KINDS, change, drift_of, judge, score_adapter, score_bundle
from edgetune.errors import CheckError, RecipeError, RunError
from edgetune.files import atomic_folder, write_json
from edgetune.lock import only_process
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir, claim

NEW_EVAL_FRACTION = 0.2
"""Of the new rows that are set apart to score on, unless the recipe sets more apart or eval rows are given."""
DECIDED = ("data.train", "data.eval", "data.test", "lora.init_from")
"""Keys that an adaptation decides itself."""


@dataclass(frozen=True)
class Asked:
    """What a user wants of an adaptation."""

    data: str
    """New rows."""
    eval: str | None = None
    """New rows to score on; without it some of `data` are set apart."""
    replay: float = 0.5
    """Share of the training rows that are old ones; 0 to below 1."""
    allowed_drop: float = 0.02
    """By how much the old rows' score may fall, of 1; of the loss, by what share it may rise."""
    overrides: tuple[str, ...] = ()
    replaces: bool = False
    """The new bundle takes the place of the run's."""


def adapt(
    run_dir: RunDir, out: RunDir, asked: Asked, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Go on with a run's adapter on new rows, in the run folder `out`; results/adapt.json, as values.

    A bundle is made only where the run has one. Raises CheckError if the old rows' score fell by more than allowed, of
    the adapter (then no bundle is written) or of the bundle against the run's (then none is replaced); the adapter and
    all scores stay. RunError for a run without an adapter, DataError for rows that do not go with the old ones, and
    what the stages raise.
    """
    from edgetune.data.replay import mix
    from edgetune.lora.task import TASKS
    from edgetune.plan import plan, refuse_over_budget
    from edgetune.train.loop import train

    old, new, recipe = _recipes(run_dir, out, asked)
    labels = TASKS[recipe.model.task].labels_of(run_dir.adapter)
    with tempfile.TemporaryDirectory() as folder:
        mixture = mix(old, new, Path(folder), share=asked.replay, labels=labels)
        with only_process(out):
            claim(out, recipe.to_toml(), force=force)
            with atomic_folder(out.mixture) as place:
                shutil.copytree(folder, place, dirs_exist_ok=True)
    say = _speaker(progress)
    say(mixture.summary)
    with only_process(out):
        refuse_over_budget(recipe, plan(recipe))
        before = {kind: score_adapter(recipe, out, kind, "before", run_dir.adapter, progress) for kind in KINDS}
        found: dict[str, Any] = {"drift": drift_of(old, new, before)}
        trained = train(recipe, out, progress=progress)
        for kind in KINDS:
            score_adapter(recipe, out, kind, "after", out.adapter, progress)
            found[kind] = change(out, kind, "before", "after")
        values = judge(found, asked.allowed_drop) | {
            "rows": dataclasses.asdict(mixture),
            "train": dataclasses.asdict(trained),
        }
        values |= {"run": str(run_dir.path), "adapter": str(out.adapter)}
        values |= dict.fromkeys(("bundle", "bundles", "replaced"))
        _write(out, recipe, values)
        if not values["passed"]:
            raise CheckError(
                f"{out.path}: {values['verdict']}; no bundle was written",
                cure="raise --replay, lower train.learning_rate with --set, or allow more with --allowed-drop",
            )
        if run_dir.bundle.exists():
            _deploy(recipe, run_dir, out, asked, values, progress)
    return values


def _speaker(progress: Progress | None) -> Callable[[str], None]:
    def say(message: str) -> None:
        if progress:
            progress({"stage": "adapt", "message": message})

    return say


def _recipes(run_dir: RunDir, out: RunDir, asked: Asked) -> tuple[Recipe, Recipe, Recipe]:
    """The run's recipe, one that reads the new rows, and that of the adaptation. Raises RunError, RecipeError."""
    if not run_dir.is_run or run_dir.read().get("stages", {}).get("train") is None or not run_dir.adapter.is_dir():
        raise RunError(
            f"{run_dir.path}: has no trained adapter to go on from", cure="give a run folder; train it first"
        )
    if out.path.resolve() == run_dir.path.resolve():
        raise RunError(f"{out.path}: is the run itself", cure="choose another folder with --out")
    names = [override.partition("=")[0].strip().replace("-", "_") for override in asked.overrides]
    for name in names:
        if name in DECIDED or name.startswith("model."):
            cure = "give new rows to score on with --eval" if name == "data.eval" else "leave it out"
            raise RecipeError(f"--set {name}: an adaptation keeps the base and brings its own rows", cure=cure)
    old = load_recipe(run_dir.recipe)
    recipe = load_recipe(run_dir.recipe, asked.overrides)
    fraction = recipe.data.eval_fraction
    if "data.eval_fraction" not in names:
        fraction = max(fraction, NEW_EVAL_FRACTION)
    rows = dataclasses.replace(recipe.data, train=asked.data, eval=asked.eval, test=None, eval_fraction=fraction)
    if "data.max_train_rows" not in names:
        rows = dataclasses.replace(rows, max_train_rows=None)
    new = dataclasses.replace(recipe, data=_with_columns_of(rows))
    from edgetune.data.replay import EVAL, TRAIN

    data = dataclasses.replace(
        recipe.data,
        train=str(out.mixture / TRAIN),
        eval=str(out.mixture / EVAL),
        test=None,
        format="auto",
        columns={},
        max_train_rows=None,
    )
    return (
        old,
        new,
        dataclasses.replace(
            recipe,
            data=data,
            lora=dataclasses.replace(recipe.lora, init_from=str(run_dir.adapter)),
            train=_as_asked(recipe, run_dir, names),
            evaluate=dataclasses.replace(recipe.evaluate, folds=None, folds_by=None),
            name=out.path.resolve().name,
        ),
    )


def _as_asked(recipe: Recipe, run_dir: RunDir, names: list[str]) -> Any:
    """[train] with the steps between evaluations as the run's user wanted them: "auto" had become those of its rows."""
    asked = run_dir.read().get("asked", {}).get("train", {})
    keys = [key for key in ("eval_steps", "checkpoint_steps") if f"train.{key}" not in names]
    return dataclasses.replace(recipe.train, **{key: asked.get(key, "auto") for key in keys})


def _with_columns_of(data: Any) -> Any:
    """[data] that reads new rows by the old rows' columns, where they have them, else by what is recognised."""
    from edgetune.data.read import rows

    first = next(rows(data.train), None)
    has_them = first is not None and all(name in first.values for name in data.columns.values())
    return data if has_them and data.columns else dataclasses.replace(data, columns={}, format="auto")


def _write(out: RunDir, recipe: Recipe, values: Mapping[str, Any]) -> None:
    write_json(out.results / "adapt.json", {**values, "provenance": provenance(recipe.train.seed)})


def _deploy(
    recipe: Recipe, run_dir: RunDir, out: RunDir, asked: Asked, values: dict[str, Any], progress: Progress | None
) -> None:
    """The other stages of the adapted run, its bundle held against the run's; put in its place where that is asked for.

    Adds to `values` and writes them. Raises CheckError for a bundle that kept too little of the gain, or whose score on
    the old rows fell too far: it is marked as not verified, and the run's stays.
    """
    from edgetune.pipeline import run
    from edgetune.verify_run import refuse_lost_gain

    result = run(recipe, out, progress=progress)
    refuse_lost_gain(out, result.summary["survival"])
    was_scored = (out.results / f"adapt-{KINDS[-1]}" / "bundle-before.json").exists()
    is_first = not (was_scored and has_replaced(run_dir, out))  # else the run's own was scored before
    for kind in KINDS:
        if is_first:
            score_bundle(out, kind, "bundle-before", run_dir.bundle, progress)
        score_bundle(out, kind, "bundle-after", out.bundle, progress)
    found = {kind: change(out, kind, "bundle-before", "bundle-after") for kind in KINDS}
    values["bundles"] = judge(found, asked.allowed_drop, of=" of the bundle")
    if not values["bundles"]["passed"]:
        _mark_failed(out.bundle)
        _write(out, recipe, values)
        raise CheckError(
            f"{out.bundle}: {values['bundles']['verdict']}; {run_dir.bundle} stays as it was",
            cure="raise --replay, or export.repair_steps with --set, or allow more with --allowed-drop",
        )
    values["bundle"] = str(out.bundle)
    if asked.replaces:
        replace_bundle(run_dir, out)
        values["replaced"] = str(run_dir.bundle)
    _write(out, recipe, values)


def replace_bundle(run_dir: RunDir, out: RunDir) -> None:
    """Put the adaptation's bundle in the place of the run's.

    run.json says so first, and of which bytes: after a crash in between it is seen that these are not there yet.
    """
    from edgetune.verify_run import bundle_hash

    with only_process(run_dir):
        run_dir.update({"bundle_from": {"run": str(out.path), "bundle": bundle_hash(out.bundle)}})
        with atomic_folder(run_dir.bundle) as place:
            shutil.copytree(out.bundle, place, dirs_exist_ok=True)


def has_replaced(run_dir: RunDir, out: RunDir) -> bool:
    """Whether the run's bundle, as it is now, is one that the adaptation in `out` put there."""
    from edgetune.verify_run import bundle_hash

    told = run_dir.read().get("bundle_from")
    if not isinstance(told, dict):  # an earlier version wrote the folder alone
        return bool(told == str(out.path))
    return bool(told == {"run": str(out.path), "bundle": bundle_hash(run_dir.bundle)})


def _mark_failed(path: Path) -> None:
    """Say in a bundle's manifest that it is not verified."""
    from edgetune.runtime.bundle import open_bundle, write_manifest

    bundle = open_bundle(path)
    write_manifest(dataclasses.replace(bundle, verified={**(bundle.verified or {}), "passed": False}))
