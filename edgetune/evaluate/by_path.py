"""Evaluate whatever a path names: a whole run, an adapter, a model folder, a bundle. Behind `edgetune evaluate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.data.read import on_disk
from edgetune.errors import RecipeError, RunError
from edgetune.evaluate.evaluate import Result, evaluate, result_values
from edgetune.evaluate.target import Target
from edgetune.evaluate.targets import choose, run_targets, table_rows, target_at
from edgetune.evaluate.task import TASKS, Rows
from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
from edgetune.files import write_json
from edgetune.model.base import base_folder
from edgetune.model.gguf import is_gguf
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import ModelTable, Recipe, load_recipe, parse_recipe
from edgetune.report.table import plain, values
from edgetune.run_dir import RunDir, find_run
from edgetune.runtime.bundle import open_bundle

HOW_HELD = ("quantization", "double_quantization", "embedding_quantization", "compute_dtype", "trust_remote_code")
"""Keys of [model] that a target outside any run can be measured with."""


@dataclass(frozen=True)
class Evaluation:
    """What was found: the folder that holds it, the table as text, all values."""

    out: Path
    table: str
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a path asks to measure, and how."""

    recipe: Recipe
    targets: Sequence[Target]
    reader: Target
    """The target by whose tokenizer the rows are read."""
    run_dir: RunDir | None


def targets_of(path: str, *, overrides: Sequence[str] = ()) -> Asked:
    """All that a run folder holds, or the one adapter, model, bundle or .gguf file that a path names.

    In a run folder its recipe says how to score, and `overrides` (table.key=value) change it; elsewhere data.test is
    needed. Raises RecipeError, RunError, ModelError, BundleError.
    """
    run_dir = None if is_gguf(path) else find_run(Path(path))
    if run_dir is None:
        target = target_at(path)
        recipe = _recipe_for(target, overrides)
        target = target if target.model is None else dataclasses.replace(target, model=recipe.model)
        return Asked(recipe, [target], target, None)
    recipe = load_recipe(run_dir.recipe, overrides)
    table = recipe.model
    base = base_folder(table)
    every = run_targets(recipe, run_dir, base)
    targets = choose(every, Path(path), run_dir)
    return Asked(recipe, targets, every.get("base", targets[0]), run_dir)


def evaluate_path(
    path: str, *, overrides: Sequence[str] = (), out: Path | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluate all that a run folder holds, or the one adapter, model or bundle that a path names.

    In a run folder its recipe says how, and `overrides` (table.key=value) change it; elsewhere data.test is needed.
    Raises RecipeError, RunError, and what `evaluate` raises.
    """
    asked = targets_of(path, overrides=overrides)
    recipe, targets, reader = asked.recipe, asked.targets, asked.reader
    out = out or (asked.run_dir.results / "evaluate" if asked.run_dir else Path("results"))
    _refuse_to_overwrite_rows(recipe, targets, out)
    eval_set = prepare_eval_set(recipe, reader, out)
    results = [evaluate(target, out / EVAL_SET_FILE, out, progress=progress) for target in targets]
    return _summarise(recipe, eval_set, results, out)


def _refuse_to_overwrite_rows(recipe: Recipe, targets: Sequence[Target], out: Path) -> None:
    """Raises RunError if a file of the results would take the place of a file of the recipe's rows."""
    names = [f"{target.name}{ending}" for target in targets for ending in (".json", "-answers.jsonl")]
    written = {(out / name).resolve() for name in (EVAL_SET_FILE, "summary.json", *names)}
    for source in on_disk(recipe.data):
        if source.resolve() in written:
            raise RunError(f"{source}: the results would take its place", cure="choose another folder with --out")


def _recipe_for(target: Target, overrides: Sequence[str]) -> Recipe:
    """A recipe for a target that no run made: its data are those of `data.test`. Raises RecipeError without them."""
    test = next((text for text in overrides if text.startswith("data.test=")), None)
    if test is None:
        raise RecipeError(
            f"{target.path}: lies in no run folder, which would say on what to score it", cure="give rows with --data"
        )
    base = target.model.base if target.model else str(target.path)
    text = (
        f'[model]\nbase = {json.dumps(base)}\ntask = "{target.task}"\n[data]\ntrain = {test.partition("=")[2]}\n'
        f"eval = {test.partition('=')[2]}\n"
    )
    recipe = parse_recipe(text, source=str(target.path), name=target.name, overrides=overrides)
    held = _held(target, recipe, overrides)
    recipe = TASKS[target.task].with_settings_of(target, recipe)
    if target.kind == "bundle":
        precision: Any = open_bundle(target.path).precision
        return dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, precision=precision))
    return recipe if held is None else dataclasses.replace(recipe, model=held)


def _held(target: Target, recipe: Recipe, overrides: Sequence[str]) -> ModelTable | None:
    """How a target's model is held: as it says itself, but for the keys of [model] that are asked for.

    Raises RecipeError for one that cannot be changed.
    """
    named = [text.partition("=")[0].strip().replace("-", "_").partition(".") for text in overrides]
    keys = [key for table, _, key in named if table == "model"]
    for key in keys:
        if target.model is None:
            raise RecipeError(f"--set model.{key}: has no effect on a {target.kind}", cure="leave it out")
        if key not in HOW_HELD:
            raise RecipeError(
                f"--set model.{key}: {target.path} says that itself", cure=f"can be set: {', '.join(HOW_HELD)}"
            )
    if target.model is None:
        return None
    return dataclasses.replace(target.model, **{key: getattr(recipe.model, key) for key in keys})


def _summarise(recipe: Recipe, eval_set: Rows, results: Sequence[Result], out: Path) -> Evaluation:
    rows = table_rows(recipe, results)
    summary = {
        "metric": eval_set.metric,
        "rows": len(eval_set.rows),
        "source": eval_set.source,
        "source_rows": eval_set.source_rows,
        "dropped": eval_set.dropped,
        "confidence": eval_set.confidence,
        "is_on_gpu": any(result.device_peak_bytes is not None for result in results),
        "table": values(rows),
        "results": [result_values(result) for result in results],
        "answers": [str(out / f"{result.target.name}-answers.jsonl") for result in results],
        "provenance": provenance(recipe.train.seed),
    }
    write_json(out / "summary.json", summary)
    return Evaluation(out, plain(rows, metric=eval_set.metric), summary)
