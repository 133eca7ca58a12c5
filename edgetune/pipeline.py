"""The stages in their order: plan, train, evaluate, merge, evaluate, export and verify, evaluate, table, page.

Each stage hands over by files in the run folder alone; one whose inputs have not changed since it finished is skipped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

from edgetune.files import write_json, write_text
from edgetune.hashes import hash_tree, hash_values
from edgetune.launch import launched
from edgetune.progress import Progress
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import DISTRIBUTIONS, RunDir, claim
from edgetune.run_scores import evaluate_target, evaluate_variants, write_ledger
from edgetune.run_state import RunState
from edgetune.run_summary import RunResult, finish


def run(recipe: Recipe, run_dir: RunDir, *, force: bool = False, progress: Progress | None = None) -> RunResult:
    """Take a recipe through all stages in its run folder; `force` first empties it of an older run.

    A bundle that kept too little of the gain is marked as not verified: see summary["survival"] and
    verify_run.refuse_lost_gain. Several processes, started by a launcher, all call this: they train together, the rest
    is the main one's, and all have its result.
    Raises RunError for a folder of another recipe, OutOfMemoryError when the estimate exceeds [budget] memory,
    CheckError when the bundle is not what was merged, and what else the stages raise.
    """
    from edgetune.train.loop import train
    from edgetune.train.processes import main_does, together

    state = RunState(recipe, run_dir, progress)
    with together():
        planned = main_does(lambda: _begin(state, force=force))
        started = time.perf_counter()
        trained = train(recipe, run_dir, progress=progress)
        state.stage_s["train"] = round(max(trained.wall_s, time.perf_counter() - started), 3)
        return main_does(lambda: _carry_to_device(state, planned, trained))


def _begin(state: RunState, *, force: bool) -> dict[str, Any]:
    """The run folder is this recipe's, and the recipe can be run: what was planned, for the summary."""
    from edgetune.train.checkpoint import sweep
    from edgetune.tune.folds import refuse_folds_of_many

    refuse_folds_of_many(state.recipe)
    claim(state.run_dir, state.recipe.to_toml(), force=force)
    sweep(state.run_dir)
    return _plan(state)


def _carry_to_device(state: RunState, planned: dict[str, Any], trained: Any) -> RunResult:
    """All that follows the training."""
    from edgetune.bundle.survival import judge
    from edgetune.bundle.task import decisive_tables
    from edgetune.evaluate.targets import run_targets
    from edgetune.evaluate.texts import prepare_eval_set
    from edgetune.model.base import base_folder, hash_base
    from edgetune.verify_run import accepted

    run_dir = state.run_dir
    state.see_memory(trained.peak_bytes * launched().local_count)
    _give_back_memory()
    validated = _cross_validate(state)
    recipe = state.recipe = _write_recipe(state)
    base = base_folder(recipe.model)
    targets = run_targets(recipe, run_dir, base)
    eval_set = prepare_eval_set(recipe, next(iter(targets.values())), run_dir.results)
    if eval_set.left_out:
        state.say("evaluate", eval_set.left_out)
    rows, base_hash, adapter_hash = eval_set.fingerprint, hash_base(base), hash_tree(run_dir.adapter)
    tuned_hash = hash_values(rows, base_hash, adapter_hash, recipe.model, DISTRIBUTIONS)
    results = {"tuned": evaluate_target(state, targets["tuned"], tuned_hash)}
    if "base" in targets:
        results["base"] = evaluate_target(state, targets["base"], hash_values(rows, base_hash, tuned_hash))
    measured = decisive_tables(recipe) if recipe.export.merge_base == "auto" else (None,)  # what the choice depends on
    merged_hash = _merge(state, base, hash_values(base_hash, adapter_hash, recipe.export.merge_base, *measured))
    results["merged"] = evaluate_target(state, targets["merged"], hash_values(rows, merged_hash, tuned_hash))
    made = _export(state, hash_values(merged_hash, *decisive_tables(recipe)))
    results |= evaluate_variants(state, merged=hash_values(rows, merged_hash, tuned_hash), made=made)
    results["bundle"] = evaluate_target(state, targets["bundle"], hash_values(rows, made, tuned_hash))
    ledger = write_ledger(state, results)
    survived = judge(recipe, run_dir, base, run_dir.results, is_accepted=accepted(run_dir))
    facts: dict[str, Any] = {
        **planned,
        "train": dataclasses.asdict(trained),
        "survival": survived,
        "folds": validated,
    }
    table = [results[name] for name in ("base", "tuned", "merged", "bundle") if name in results]
    return finish(state, table, ledger, facts)


def _give_back_memory() -> None:
    """What a stage has freed goes to the system: other processes need it next."""
    from edgetune.model.heap import give_back_freed

    if "torch" in sys.modules:  # a GPU's too
        from edgetune.model.memory import give_back_memory

        give_back_memory()
    else:
        give_back_freed()


def _cross_validate(state: RunState) -> dict[str, Any] | None:
    """What the folds scored, where [evaluate] asks for them."""
    if not state.recipe.evaluate.folds:
        return None
    from edgetune.tune.folds import cross_validate

    started = time.perf_counter()
    found = cross_validate(state.recipe, state.run_dir, progress=state.progress)
    state.stage_s["folds"] = round(time.perf_counter() - started, 3)
    return {"summary": found.summary, **dataclasses.asdict(found)}


def _write_recipe(state: RunState) -> Recipe:
    """Put [export], [evaluate] and [budget] into the folder's resolved recipe: they may have changed since training.

    The recipe with "auto" in [train] decided as the training did.
    """
    resolved = load_recipe(state.run_dir.recipe)
    tables = {name: getattr(state.recipe, name) for name in ("export", "evaluate", "budget")}
    write_text(state.run_dir.recipe, dataclasses.replace(resolved, **tables).to_toml())
    return dataclasses.replace(state.recipe, train=resolved.train)


def _plan(state: RunState) -> dict[str, Any]:
    """What was planned, once the recipe fits the real files and its budget: what would stop a late stage stops here."""
    from edgetune.plan import disk_bytes, plan, refuse_over_budget
    from edgetune.plan_checks import check_folder

    planned = plan(state.recipe, scored_rows=None, progress=state.progress)
    refuse_over_budget(state.recipe, planned)
    check_folder(state.run_dir, needed_bytes=disk_bytes(planned))
    for note in planned.notes:
        state.say("plan", note)
    gib, trained = planned.largest.peak_bytes / 1024**3, planned.estimate.trainable_parameters
    state.say("plan", f"about {gib:.2f} GiB at the peak, in {planned.largest.name}; {trained:,} weights to train")
    peaks = {stage.name: stage.peak_bytes for stage in planned.stages}
    return {"estimate": dataclasses.asdict(planned.estimate), "planned_peak_bytes": peaks}


def _merge(state: RunState, base: Path, inputs: str) -> str:
    """runs/x/merged; its hash."""
    from edgetune.lora.merge import merge

    def fold() -> None:
        run_dir, merge_base = state.run_dir, merge_base_of(state.recipe, state.run_dir, base, progress=state.progress)
        result = merge(run_dir.adapter, base, run_dir.merged, merge_base=merge_base, progress=state.progress)
        state.see_memory(result.peak_bytes)

    return state.stage("merge", inputs, state.run_dir.merged, fold)


def merge_base_of(
    recipe: Recipe, run_dir: RunDir, base: Path, *, progress: Progress | None = None
) -> Literal["trained", "original"]:
    """What [export] merge_base says, or for "auto" what measuring says, which is kept in results/merge.json."""
    asked = recipe.export.merge_base
    if asked != "auto":
        return asked
    from edgetune.bundle.merge_base import choose_merge_base

    choice = choose_merge_base(recipe, run_dir, base, progress=progress)
    run_dir.results.mkdir(exist_ok=True)
    write_json(run_dir.results / "merge.json", {**dataclasses.asdict(choice), "provenance": provenance()})
    if progress:
        losses = ", ".join(f"{name} base {loss:.4f}" for name, loss in choice.losses.items())
        low, high = choice.difference
        told = f"original less trained {low:+.4f} to {high:+.4f} on {choice.rows:,} rows"
        told = f"eval loss on the grid: {losses} ({told}); merging on the {choice.merge_base}"
        progress({"stage": "merge", "message": told})
    return choice.merge_base


def _export(state: RunState, inputs: str) -> str:
    """runs/x/bundle and what its verification found; its hash. The stage itself refuses a bundle that fails."""
    from edgetune.bundle.export import export

    def build() -> None:
        result = export(state.recipe, state.run_dir, force=True, progress=state.progress)
        checks = [dataclasses.asdict(check) for check in result.verification.checks]
        write_json(state.run_dir.results / "verify.json", {"checks": checks, "provenance": provenance()})
        state.see_memory(result.peak_bytes)
        _give_back_memory()

    return state.stage("export", inputs, state.run_dir.bundle, build)
