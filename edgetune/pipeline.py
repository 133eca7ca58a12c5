"""The stages in their order: plan, train, evaluate, merge, evaluate, export and verify, evaluate, table.

Each stage hands over by files in the run folder alone; one whose inputs have not changed since it finished is skipped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.errors import OutOfMemoryError
from edgetune.recipe import Recipe, parse_size
from edgetune.run_dir import RunDir, hash_file, hash_tree, hash_values, provenance, read_json, write_json

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run, as results/summary.json holds it."""

    run_dir: RunDir
    table: str
    """The table as text."""
    summary: Mapping[str, Any]


@dataclass
class _Run:
    """What the stages of one run share."""

    recipe: Recipe
    run_dir: RunDir
    force: bool
    progress: Progress | None
    stage_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    """Highest memory of this process and the one it started, together."""

    def say(self, stage: str, message: str) -> None:
        if self.progress:
            self.progress({"stage": stage, "message": message})

    def stage(self, name: str, inputs: str, output: Path, work: Callable[[], Any]) -> bool:
        """Do a stage unless it finished with these inputs and its output is there; whether it was done."""
        if not self.force and output.exists() and self.run_dir.is_current(name, inputs):
            self.stage_s[name] = self.run_dir.read()["stages"][name].get("seconds", 0.0)
            self.say(name, "up to date")
            return False
        started = time.perf_counter()
        self.run_dir.forget(name)
        work()
        self.stage_s[name] = round(time.perf_counter() - started, 3)
        self.run_dir.finish(name, inputs, seconds=self.stage_s[name])
        return True


def run(recipe: Recipe, run_dir: RunDir, *, force: bool = False, progress: Progress | None = None) -> RunResult:
    """Take a recipe through all stages in its run folder.

    `force` does every stage after training again, finished or not. Raises OutOfMemoryError when the estimate exceeds
    [budget] memory, RunError for a folder of another recipe, CheckError when the bundle is not what was trained, and
    what else the stages raise.
    """
    from edgetune.evaluate.targets import run_targets
    from edgetune.evaluate.texts import prepare_eval_set
    from edgetune.model.base import hash_base, resolve_base
    from edgetune.train.loop import train

    work = _Run(recipe, run_dir, force, progress)
    estimate = _plan(work)
    started = time.perf_counter()
    trained = train(recipe, run_dir, progress=progress)
    work.stage_s["train"] = round(max(trained.wall_s, time.perf_counter() - started), 3)
    work.peak_bytes = _own_peak_bytes()
    base = resolve_base(recipe.model.base, recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code)
    targets = run_targets(recipe, run_dir, base)
    eval_set = prepare_eval_set(recipe, targets["base"], run_dir.results)
    if eval_set.dropped_too_long:
        work.say("evaluate", f"{eval_set.dropped_too_long} rows longer than the context were left out")
    base_hash, adapter_hash = hash_base(base), hash_tree(run_dir.adapter)
    results = [
        _evaluate(work, targets["base"], hash_values(eval_set.fingerprint, base_hash, recipe.model.compute_dtype)),
        _evaluate(work, targets["tuned"], hash_values(eval_set.fingerprint, base_hash, adapter_hash, recipe.model)),
    ]
    _merge(work, base, hash_values(base_hash, adapter_hash, recipe.export.merge_base))
    merged_hash = hash_tree(run_dir.merged)
    results.append(
        _evaluate(work, targets["merged"], hash_values(eval_set.fingerprint, merged_hash, recipe.model.compute_dtype))
    )
    _export(work, hash_values(merged_hash, recipe.export, recipe.data))
    bundle_hash = hash_file(run_dir.bundle / "edgetune.json")
    results.append(_evaluate(work, targets["bundle"], hash_values(eval_set.fingerprint, bundle_hash)))
    return _finish(work, results, {"estimate": dataclasses.asdict(estimate), "train": dataclasses.asdict(trained)})


def _plan(work: _Run) -> Any:
    """The estimate, held against the budget."""
    from edgetune.model.memory import estimate

    planned = estimate(work.recipe)
    allowed = parse_size(work.recipe.budget.memory)
    gib = planned.peak_bytes / 1024**3
    if allowed is not None and planned.peak_bytes > allowed:
        raise OutOfMemoryError(
            f"training needs about {gib:.2f} GiB, the budget is {work.recipe.budget.memory}",
            cure="lower train.batch_size or data.max_seq_len, or raise budget.memory",
        )
    work.say("plan", f"about {gib:.2f} GiB at the peak of training, {planned.trainable_parameters:,} weights to train")
    return planned


def _evaluate(work: _Run, target: Any, inputs: str) -> Any:
    """The result of one target, measured now or before."""
    from edgetune.evaluate.evaluate import evaluate, read_result
    from edgetune.evaluate.texts import EVAL_SET_FILE
    from edgetune.report.measure import resident_bytes

    results = work.run_dir.results
    work.stage(
        f"evaluate-{target.name}",
        inputs,
        results / f"{target.name}.json",
        lambda: evaluate(target, results / EVAL_SET_FILE, results, progress=work.progress),
    )
    result = read_result(read_json(results / f"{target.name}.json"))
    work.peak_bytes = max(work.peak_bytes, resident_bytes() + result.scoring_peak_bytes, _own_peak_bytes())
    return result


def _merge(work: _Run, base: Path, inputs: str) -> None:
    from edgetune.lora.merge import merge

    work.stage(
        "merge",
        inputs,
        work.run_dir.merged,
        lambda: merge(
            work.run_dir.adapter,
            base,
            work.run_dir.merged,
            merge_base=work.recipe.export.merge_base,
            progress=work.progress,
        ),
    )


def _export(work: _Run, inputs: str) -> None:
    """The bundle and what its verification found; export itself refuses a bundle that fails."""
    from edgetune.export.export import export

    def build() -> None:
        result = export(work.recipe, work.run_dir, force=True, progress=work.progress)
        checks = [dataclasses.asdict(check) for check in result.verification.checks]
        write_json(work.run_dir.results / "verify.json", {"checks": checks, "provenance": provenance()})

    work.stage("export", inputs, work.run_dir.bundle, build)


def _finish(work: _Run, results: list[Any], facts: Mapping[str, Any]) -> RunResult:
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
        "table": values(rows),
        "markdown": markdown(rows, metric=metric),
        "bundle": str(work.run_dir.bundle),
        "peak_bytes": work.peak_bytes,
        "wall_s": round(sum(work.stage_s.values()), 3),
        "stage_s": work.stage_s,
        "budget": dataclasses.asdict(work.recipe.budget),
        **facts,
        "provenance": provenance(work.recipe.train.seed),
    }
    write_json(work.run_dir.results / "summary.json", summary)
    return RunResult(work.run_dir, plain(rows, metric=metric), summary)


def _own_peak_bytes() -> int:
    from edgetune.report.measure import peak_memory_bytes

    return peak_memory_bytes()
