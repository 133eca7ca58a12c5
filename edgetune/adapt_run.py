"""New rows for a run: its adapter goes on, in a run folder of its own, and must not forget. `edgetune adapt` shows it.

In the flow: RUN's recipe, adapter and rows with new rows -> OUT/mixture -> scores of the adapter as it is -> training
-> the same scores again -> where the old rows' has not fallen too far, the other stages: OUT/bundle.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import CheckError, RecipeError, RunError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.hashes import hash_tree, hash_values
from edgetune.lock import only_process
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir, claim

NEW_EVAL_FRACTION = 0.2
"""Of the new rows that are set apart to score on, unless the recipe sets more apart or eval rows are given."""
COMPARED_ROWS = 5_000
"""Rows of each kind that drift is measured on, at most."""
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

    A bundle is made only where the run has one. Raises CheckError if the old rows' score fell by more than allowed:
    the adapter and its scores stay, and no bundle is written or replaced. RunError for a run without an adapter,
    DataError for rows that do not go with the old ones, and what the stages raise.
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
        before = {kind: _score(recipe, out, kind, "before", run_dir.adapter, progress) for kind in ("old", "new")}
        found: dict[str, Any] = {"drift": _drift(old, new, before)}
        trained = train(recipe, out, progress=progress)
        for kind in ("old", "new"):
            _score(recipe, out, kind, "after", out.adapter, progress)
            found[kind] = _change(out, kind)
        values = _judge(found, asked) | {"rows": dataclasses.asdict(mixture), "train": dataclasses.asdict(trained)}
        values |= {"run": str(run_dir.path), "adapter": str(out.adapter), "bundle": None, "replaced": None}
        write_json(out.results / "adapt.json", {**values, "provenance": provenance(recipe.train.seed)})
        if not values["passed"]:
            raise CheckError(
                f"{out.path}: {values['verdict']}; no bundle was written",
                cure="raise --replay, lower train.learning_rate with --set, or allow more with --allowed-drop",
            )
        if run_dir.bundle.exists():
            values |= _deploy(recipe, run_dir, out, asked, progress)
            write_json(out.results / "adapt.json", {**values, "provenance": provenance(recipe.train.seed)})
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


def _score(recipe: Recipe, out: RunDir, kind: str, name: str, adapter: Path, progress: Progress | None) -> Any:
    """The result of an adapter on the old or new eval rows, measured now or before; answers in results/adapt-<kind>."""
    from edgetune.data.replay import NEW_EVAL, OLD_EVAL
    from edgetune.evaluate.evaluate import Target, evaluate, read_result
    from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
    from edgetune.model.base import base_folder, hash_base

    model, folder = recipe.model, out.results / f"adapt-{kind}"
    base = base_folder(model)
    target = Target("tuned", name, adapter, dataclasses.replace(model, base=str(base), revision=None), model.task)
    rows = str(out.mixture / (OLD_EVAL if kind == "old" else NEW_EVAL))
    judged = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, eval=rows, test=None))
    folder.mkdir(parents=True, exist_ok=True)
    eval_set = prepare_eval_set(judged, target, folder, split="eval")
    inputs, stage = hash_values(eval_set.fingerprint, hash_tree(adapter), hash_base(base), model), f"{kind}-{name}"
    file = folder / f"{name}.json"
    if out.is_current(stage, inputs) and file.exists():
        return read_result(read_json(file))
    result = evaluate(target, folder / EVAL_SET_FILE, folder, budget=recipe.budget, progress=progress)
    out.finish(stage, inputs)
    return result


def _change(out: RunDir, kind: str) -> dict[str, Any]:
    """Scores and losses before and after, and how sure the difference is."""
    from edgetune.evaluate.compare import compare

    folder = out.results / f"adapt-{kind}"
    files = [folder / f"{name}-answers.jsonl" for name in ("before", "after")]
    found, losses = (
        compare(*files),
        [read_json(folder / f"{name}.json")["score"]["loss"] for name in ("before", "after")],
    )
    return {
        "metric": found.metric,
        "rows": found.rows,
        "before": found.a_score,
        "after": found.b_score,
        "difference": found.difference,
        "interval": found.interval,
        "confidence": found.confidence,
        "p_value": found.p_value,
        "loss_before": losses[0],
        "loss_after": losses[1],
    }


def _judge(found: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Whether the old rows' score fell no further than allowed, in values and in words."""
    old = found["old"]
    is_loss = old["metric"] == "loss"
    fell = old["difference"] / max(old["before"], 1e-9) if is_loss else -old["difference"]
    passed = fell <= asked.allowed_drop
    if is_loss:
        verdict = f"the loss on the old rows went from {old['before']:.4f} to {old['after']:.4f}"
        verdict += f", {fell:+.1%}; allowed: {asked.allowed_drop:+.1%}"
    else:
        verdict = f"the old rows' score went from {old['before']:.1%} to {old['after']:.1%}"
        verdict += f", {-100 * fell:+.1f} points; allowed: {-100 * asked.allowed_drop:+.1f}"
    return {**found, "allowed_drop": asked.allowed_drop, "fell": fell, "passed": passed, "verdict": verdict}


def _drift(old: Recipe, new: Recipe, before: Mapping[str, Any]) -> dict[str, Any]:
    """How far the new rows are from the old ones: data.drift's measures, and the loss of the adapter as it was."""
    from edgetune.data.drift import Rows, drift
    from edgetune.data.replay import sample
    from edgetune.model.base import base_folder, load_tokenizer

    model = old.model
    base = base_folder(model)
    tokenizer = load_tokenizer(base, trust_remote_code=model.trust_remote_code)

    def read(recipe: Recipe) -> Rows:
        examples = sample(recipe, COMPARED_ROWS)
        texts = [example.text or "\n".join(turn.content for turn in example.messages) for example in examples]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return Rows(ids, texts, [example.labels for example in examples])

    found = drift(read(old), read(new), seed=old.train.seed)
    measures = [{**dataclasses.asdict(item), "is_drift": item.is_drift} for item in found.measures]
    losses = {
        kind: {"loss": result.score.loss, "interval": result.score.loss_interval} for kind, result in before.items()
    }
    return {**dataclasses.asdict(found), "measures": measures, "loss": losses}


def _deploy(
    recipe: Recipe, run_dir: RunDir, out: RunDir, asked: Asked, progress: Progress | None
) -> dict[str, str | None]:
    """The other stages of the adapted run; its bundle in the run's place too, where that is asked for."""
    from edgetune.pipeline import run
    from edgetune.verify_run import refuse_lost_gain

    result = run(recipe, out, progress=progress)
    refuse_lost_gain(out, result.summary["survival"])
    if not asked.replaces:
        return {"bundle": str(out.bundle)}
    with only_process(run_dir), atomic_folder(run_dir.bundle) as place:
        shutil.copytree(out.bundle, place, dirs_exist_ok=True)
    run_dir.update({"bundle_from": str(out.path)})
    return {"bundle": str(out.bundle), "replaced": str(run_dir.bundle)}
