"""The stages in their order: plan, train, evaluate, merge, evaluate, export and verify, evaluate, table, page.

Each stage hands over by files in the run folder alone; one whose inputs have not changed since it finished is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgetune.files import read_json, write_json, write_text
from edgetune.hashes import hash_file, hash_tree, hash_values
from edgetune.launch import launched
from edgetune.process_memory import resident_bytes
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe, parse_size
from edgetune.run_dir import RunDir, claim

Progress = Callable[[Mapping[str, Any]], None]
DISTRIBUTIONS = "distributions.npy"
"""What the fine-tune finds likely, in the run's results: other targets are compared with it."""
VARIANT_ROWS = 100
"""Rows on which graphs are measured that are built for the ledger alone: what they differ in shows in the logits."""
FLOAT_ONNX, EXACT_ONNX = "onnx-fp32", "onnx-exact"
"""Names of the bundle's variants in results/."""


@dataclass(frozen=True)
class RunResult:
    """A finished run, as results/summary.json holds it."""

    run_dir: RunDir
    table: str
    """The table as text."""
    ledger: str
    """What each step from the base to the device did, as text."""
    summary: Mapping[str, Any]


@dataclass
class _Run:
    """What the stages of one run share."""

    recipe: Recipe
    run_dir: RunDir
    progress: Progress | None
    stage_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    """Highest memory of this process and the one it started, together; with a GPU, that of the GPU."""

    def see_memory(self, size_bytes: int) -> None:
        """A measurement of memory, which may be the highest."""
        self.peak_bytes = max(self.peak_bytes, size_bytes)

    def say(self, stage: str, message: str) -> None:
        if self.progress:
            self.progress({"stage": stage, "message": message})

    def report(self, result: Any) -> None:
        """A target's numbers to events.jsonl."""
        score = result.score
        event = {"stage": "evaluate", "target": result.target.name, "score": score.score, "loss": score.loss}
        self.run_dir.append_event(event)

    def stage(self, name: str, inputs: str, output: Path, work: Callable[[], Any]) -> str:
        """Do a stage unless it finished with these inputs and left this output; the output's hash."""
        record = self.run_dir.read().get("stages", {}).get(name, {})
        if self.run_dir.is_current(name, inputs) and output.exists() and record.get("output") == _hash(output):
            self.stage_s[name] = record["seconds"]
            self.say(name, "up to date")
            return str(record["output"])
        started = time.perf_counter()
        self.run_dir.forget(name)
        work()
        made = _hash(output)
        self.stage_s[name] = round(time.perf_counter() - started, 3)
        self.run_dir.finish(name, inputs, output=made, seconds=self.stage_s[name])
        return made


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

    work = _Run(recipe, run_dir, progress)
    with together():
        estimate = main_does(lambda: _begin(work, force=force))
        started = time.perf_counter()
        trained = train(recipe, run_dir, progress=progress)
        work.stage_s["train"] = round(max(trained.wall_s, time.perf_counter() - started), 3)
        return main_does(lambda: _carry_to_device(work, estimate, trained))


def _begin(work: _Run, *, force: bool) -> Any:
    """The run folder is this recipe's, and the recipe can be run: its estimate."""
    from edgetune.train.checkpoint import sweep
    from edgetune.tune.folds import refuse_folds_of_many

    refuse_folds_of_many(work.recipe)
    claim(work.run_dir, work.recipe.to_toml(), force=force)
    sweep(work.run_dir)
    return _plan(work)


def _carry_to_device(work: _Run, estimate: Any, trained: Any) -> RunResult:
    """All that follows the training."""
    from edgetune.bundle.survival import judge
    from edgetune.evaluate.targets import run_targets
    from edgetune.evaluate.texts import prepare_eval_set
    from edgetune.model.base import hash_base, resolve_base
    from edgetune.quantize.precisions import grid_of
    from edgetune.verify_run import accepted

    run_dir = work.run_dir
    work.see_memory(trained.peak_bytes * launched().local_count)
    _give_back_memory()
    validated = _cross_validate(work)
    recipe = work.recipe = _write_recipe(work)
    base = resolve_base(recipe.model.base, recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code)
    targets = run_targets(recipe, run_dir, base)
    eval_set = prepare_eval_set(recipe, next(iter(targets.values())), run_dir.results)
    if eval_set.left_out:
        work.say("evaluate", eval_set.left_out)
    rows, base_hash, adapter_hash = eval_set.fingerprint, hash_base(base), hash_tree(run_dir.adapter)
    tuned_hash = hash_values(rows, base_hash, adapter_hash, recipe.model, DISTRIBUTIONS)
    results = {"tuned": _evaluate(work, targets["tuned"], tuned_hash)}
    if "base" in targets:
        results["base"] = _evaluate(work, targets["base"], hash_values(rows, base_hash, tuned_hash))
    grid = grid_of(recipe.export) if recipe.export.merge_base == "auto" else None  # what the choice depends on
    merged_hash = _merge(work, base, hash_values(base_hash, adapter_hash, recipe.export.merge_base, grid))
    results["merged"] = _evaluate(work, targets["merged"], hash_values(rows, merged_hash, tuned_hash))
    asked = dataclasses.replace(recipe.export, min_gain_kept=0.0)  # that judges a bundle, and makes none
    made = _export(work, hash_values(merged_hash, asked, recipe.data, recipe.classify))
    results |= _evaluate_variants(work, merged=hash_values(rows, merged_hash, tuned_hash), made=made)
    results["bundle"] = _evaluate(work, targets["bundle"], hash_values(rows, made, tuned_hash))
    ledger = _write_ledger(work, results)
    survived = judge(recipe, run_dir, base, run_dir.results, is_accepted=accepted(run_dir))
    facts: dict[str, Any] = {
        "estimate": dataclasses.asdict(estimate),
        "train": dataclasses.asdict(trained),
        "survival": survived,
    }
    facts |= {"folds": validated}
    table = [results[name] for name in ("base", "tuned", "merged", "bundle") if name in results]
    return _finish(work, table, ledger, facts)


def _give_back_memory() -> None:
    """What a stage has freed goes to the system: other processes need it next."""
    from edgetune.model.heap import give_back_freed

    gc.collect()  # models hold themselves in circles
    give_back_freed()


def _cross_validate(work: _Run) -> dict[str, Any] | None:
    """What the folds scored, where [evaluate] asks for them."""
    if not work.recipe.evaluate.folds:
        return None
    from edgetune.tune.folds import cross_validate

    started = time.perf_counter()
    found = cross_validate(work.recipe, work.run_dir, progress=work.progress)
    work.stage_s["folds"] = round(time.perf_counter() - started, 3)
    return {"summary": found.summary, **dataclasses.asdict(found)}


def _write_recipe(work: _Run) -> Recipe:
    """Put [export], [evaluate] and [budget] into the folder's resolved recipe: they may have changed since training.

    The recipe with "auto" in [train] decided as the training did.
    """
    resolved = load_recipe(work.run_dir.recipe)
    tables = {name: getattr(work.recipe, name) for name in ("export", "evaluate", "budget")}
    write_text(work.run_dir.recipe, dataclasses.replace(resolved, **tables).to_toml())
    return dataclasses.replace(work.recipe, train=resolved.train)


def _plan(work: _Run) -> Any:
    """The estimate, once the recipe fits the real files and its budget: what would stop a late stage stops here."""
    from edgetune.plan import disk_bytes, plan, refuse_over_budget
    from edgetune.plan_checks import check_folder

    planned = plan(work.recipe, scored_rows=None)
    refuse_over_budget(work.recipe, planned)
    check_folder(work.run_dir, needed_bytes=disk_bytes(planned))
    for note in planned.notes:
        work.say("plan", note)
    estimate = planned.estimate
    gib = estimate.peak_bytes / 1024**3
    work.say("plan", f"about {gib:.2f} GiB at the peak of training, {estimate.trainable_parameters:,} weights to train")
    return estimate


def _evaluate(work: _Run, target: Any, inputs: str, *, name: str = "", most_rows: int | None = None) -> Any:
    """The result of one target, measured now or before; `target` may be what makes it when it is to be measured."""
    from edgetune.evaluate.evaluate import evaluate, read_result
    from edgetune.evaluate.texts import EVAL_SET_FILE

    results, name = work.run_dir.results, name or target.name

    def measure() -> None:
        work.report(
            evaluate(
                target() if callable(target) else target,
                results / EVAL_SET_FILE,
                results,
                distributions=results / DISTRIBUTIONS,
                most_rows=most_rows,
                progress=work.progress,
            )
        )

    work.stage(f"evaluate-{name}", inputs, results / f"{name}.json", measure)
    result = read_result(read_json(results / f"{name}.json"))
    work.see_memory(_evaluation_bytes(result))
    return result


def _evaluation_bytes(result: Any) -> int:
    """The most memory while a target was measured: of both processes, or, with a GPU, of the GPU."""
    from edgetune.model.device import device

    if device().type == "cuda":
        return int(result.device_scoring_peak_bytes or 0)
    return resident_bytes() + int(result.scoring_peak_bytes)


def _merge(work: _Run, base: Path, inputs: str) -> str:
    """runs/x/merged; its hash."""
    from edgetune.lora.merge import merge

    def fold() -> None:
        run_dir, merge_base = work.run_dir, merge_base_of(work.recipe, work.run_dir, base, progress=work.progress)
        result = merge(run_dir.adapter, base, run_dir.merged, merge_base=merge_base, progress=work.progress)
        work.see_memory(result.peak_bytes)

    return work.stage("merge", inputs, work.run_dir.merged, fold)


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
        progress({"stage": "merge", "message": f"eval loss on the grid: {losses}; merging on the {choice.merge_base}"})
    return choice.merge_base


def _export(work: _Run, inputs: str) -> str:
    """runs/x/bundle and what its verification found; its hash. The stage itself refuses a bundle that fails."""
    from edgetune.bundle.export import export

    def build() -> None:
        result = export(work.recipe, work.run_dir, force=True, progress=work.progress)
        checks = [dataclasses.asdict(check) for check in result.verification.checks]
        write_json(work.run_dir.results / "verify.json", {"checks": checks, "provenance": provenance()})
        work.see_memory(result.peak_bytes)
        _give_back_memory()

    return work.stage("export", inputs, work.run_dir.bundle, build)


def _evaluate_variants(work: _Run, *, merged: str, made: str) -> dict[str, Any]:
    """The bundle's model as a float32 graph, and the bundle with exact activations: built, measured, thrown away.

    `merged`: the hash of what the float32 graph is measured on; `made`: of the bundle.
    """
    from edgetune.bundle.variants import MOST_FLOAT_BYTES, build_float, exact, float_bytes
    from edgetune.evaluate.evaluate import Target
    from edgetune.runtime.bundle import open_bundle

    run_dir, bundle, task = work.run_dir, open_bundle(work.run_dir.bundle), work.recipe.model.task
    found, measure = {}, partial(_evaluate, work, most_rows=VARIANT_ROWS)
    if bundle.precision == "fp32":
        return {}
    if float_bytes(run_dir.merged) <= MOST_FLOAT_BYTES:
        with tempfile.TemporaryDirectory(prefix=".onnx-fp32.", dir=run_dir.path) as folder:

            def build() -> Target:
                is_chat = bundle.chat is not None and bundle.chat.template is not None
                build_float(run_dir.merged, Path(folder), work.recipe, is_chat=is_chat)
                return Target("bundle", FLOAT_ONNX, Path(folder), None, task)

            inputs = hash_values(merged, work.recipe.export.max_length)
            found[FLOAT_ONNX] = measure(build, inputs, name=FLOAT_ONNX)
    else:
        work.say("evaluate", "no float32 graph for the ledger: the model is too large for one")
    if bundle.grid is not None and bundle.grid.bits == 2:
        work.say(
            "evaluate", "no int2 graph with exact activations for the ledger: it would be hundreds of times slower"
        )
    elif bundle.grid is not None and bundle.grid.accuracy_level != 0:
        with contextlib.ExitStack() as stack:

            def copy() -> Target:
                return Target("bundle", EXACT_ONNX, stack.enter_context(exact(bundle)).path, None, task)

            found[EXACT_ONNX] = measure(copy, hash_values(merged, made), name=EXACT_ONNX)
    return found


def _write_ledger(work: _Run, results: Mapping[str, Any]) -> str:
    """results/ledger.json: every step from the base to the device; the same as text."""
    from edgetune.evaluate.ledger import make_entries, plain, to_json
    from edgetune.evaluate.targets import ledger_names

    names = ledger_names(work.recipe)
    found = [(name, results[stage]) for stage, name in names.items() if stage in results]
    base = "base" if "base" in results else None
    entries = make_entries(
        found, work.run_dir.results, tokenizer_file=work.run_dir.bundle / "tokenizer.json", base=base
    )
    write_json(
        work.run_dir.results / "ledger.json",
        {"metric": work.recipe.evaluate.metric, "stages": to_json(entries), "provenance": provenance()},
    )
    return plain(entries)


def _finish(work: _Run, results: list[Any], ledger: str, facts: Mapping[str, Any]) -> RunResult:
    """The table and results/summary.json."""
    from edgetune.evaluate.targets import table_rows
    from edgetune.report.table import markdown, plain, values

    rows = table_rows(work.recipe, results)
    metric = work.recipe.evaluate.metric
    summary = {
        "recipe": work.recipe.name,
        "metric": metric,
        "rows": results[0].score.rows,
        "confidence": work.recipe.evaluate.confidence,
        "is_on_gpu": any(result.device_peak_bytes is not None for result in results),
        "table": values(rows),
        "markdown": markdown(rows, metric=metric),
        "bundle": str(work.run_dir.bundle),
        "verification": read_json(work.run_dir.results / "verify.json")["checks"],
        "peak_bytes": work.peak_bytes,
        "wall_s": round(sum(work.stage_s.values()), 3),
        "stage_s": work.stage_s,
        "budget": dataclasses.asdict(work.recipe.budget),
        "over_budget": _over_budget(work),
        **facts,
        "provenance": provenance(work.recipe.train.seed),
    }
    if work.recipe.is_classifier:
        summary["classification"] = _draw_labels(work, results[-1].score)
    write_json(work.run_dir.results / "summary.json", summary)
    _write_cards(work)
    _write_report(work)
    return RunResult(work.run_dir, plain(rows, metric=metric), ledger, summary)


def _draw_labels(work: _Run, score: Any) -> dict[str, Any]:
    """What the bundle scored label by label, and results/confusion.png where the labels are few enough to look at."""
    from edgetune.report.confusion import draw_confusion

    classes = score.classes
    if classes["confusion"] is not None:
        labels = [item["label"] for item in classes["per_class"]]
        draw_confusion(classes["confusion"], labels, work.run_dir.results / "confusion.png", title=work.recipe.name)
    kept = ("temperature", "rejection", "is_calibrated_on_scored_rows")
    return {**{name: getattr(score, name) for name in kept}, **classes}


def _write_cards(work: _Run) -> None:
    """README.md in adapter and bundle, now that there are scores."""
    from edgetune.report.card import write_cards

    write_cards(work.run_dir, progress=work.progress)


def _write_report(work: _Run) -> None:
    """runs/x/report.html; a run that is done does not fail for want of a page."""
    from edgetune.report.write import report

    try:
        written = report([work.run_dir.path], work.run_dir.report, force=True)
    except ModuleNotFoundError as error:
        work.say("report", f"no page: {error.name} is not installed: pip install 'edgetune[report]'")
    except Exception as error:
        work.say("report", f"no page: {type(error).__name__}: {error}")
    else:
        work.say("report", f"{written.out}")


def _over_budget(work: _Run) -> list[str]:
    """One line for each promise of [budget] that the run, as measured, did not keep."""
    budget, minutes = work.recipe.budget, sum(work.stage_s.values()) / 60
    allowed = parse_size(budget.memory)
    broken = []
    if allowed is not None and work.peak_bytes > allowed:
        broken.append(f"{work.peak_bytes / 1024**2:,.0f} MiB at the peak, budget.memory is {budget.memory}")
    if budget.minutes is not None and minutes > budget.minutes:
        broken.append(f"{minutes:.1f} minutes, budget.minutes is {budget.minutes:g}")
    return broken


def _hash(path: Path) -> str:
    from edgetune.evaluate.targets import is_bundle
    from edgetune.verify_run import bundle_hash

    if not path.is_dir():
        return hash_file(path)
    return bundle_hash(path) if is_bundle(path) else hash_tree(path)
