"""The evaluate stages of a run: its targets, the variants of its bundle, and the ledger of what each step did."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.files import read_json, write_json
from edgetune.hashes import hash_values
from edgetune.process_memory import resident_bytes
from edgetune.provenance import provenance
from edgetune.run_dir import DISTRIBUTIONS
from edgetune.run_state import RunState

VARIANT_ROWS = 100
"""Rows on which graphs are measured that are built for the ledger alone: what they differ in shows in the logits."""
FLOAT_ONNX, EXACT_ONNX = "onnx-fp32", "onnx-exact"
"""Names of the bundle's variants in results/."""


def evaluate_target(state: RunState, target: Any, inputs: str, *, name: str = "", most_rows: int | None = None) -> Any:
    """The result of one target, measured now or before; `target` may be what makes it when it is to be measured."""
    from edgetune.evaluate.evaluate import evaluate, read_result
    from edgetune.evaluate.texts import EVAL_SET_FILE

    results, name = state.run_dir.results, name or target.name

    def measure() -> None:
        result = evaluate(
            target() if callable(target) else target,
            results / EVAL_SET_FILE,
            results,
            distributions=results / DISTRIBUTIONS,
            most_rows=most_rows,
            progress=state.progress,
        )
        score = result.score
        event = {"stage": "evaluate", "target": result.target.name, "score": score.score, "loss": score.loss}
        state.run_dir.append_event(event)

    state.stage(f"evaluate-{name}", inputs, results / f"{name}.json", measure)
    result = read_result(read_json(results / f"{name}.json"))
    state.see_memory(_evaluation_bytes(result))
    return result


def _evaluation_bytes(result: Any) -> int:
    """The most memory while a target was measured: of both processes, or, with a GPU, of the GPU."""
    from edgetune.model.device import device

    if device().type == "cuda":
        return int(result.device_scoring_peak_bytes or 0)
    return resident_bytes() + int(result.scoring_peak_bytes)


def evaluate_variants(state: RunState, *, merged: str, made: str) -> dict[str, Any]:
    """The bundle's model as a float32 graph, and the bundle with exact activations: built, measured, thrown away.

    `merged`: the hash of what the float32 graph is measured on; `made`: of the bundle.
    """
    from edgetune.bundle.variants import MOST_FLOAT_BYTES, build_float, exact, float_bytes
    from edgetune.evaluate.evaluate import Target
    from edgetune.runtime.bundle import open_bundle

    recipe, run_dir = state.recipe, state.run_dir
    bundle, task = open_bundle(run_dir.bundle), recipe.model.task
    found, measure = {}, partial(evaluate_target, state, most_rows=VARIANT_ROWS)
    if bundle.precision == "fp32":
        return {}
    if float_bytes(run_dir.merged) <= MOST_FLOAT_BYTES:
        with tempfile.TemporaryDirectory(prefix=".onnx-fp32.", dir=run_dir.path) as folder:

            def build() -> Target:
                build_float(bundle, run_dir.merged, Path(folder), recipe)
                return Target("bundle", FLOAT_ONNX, Path(folder), None, task)

            inputs = hash_values(merged, recipe.export.max_length)
            found[FLOAT_ONNX] = measure(build, inputs, name=FLOAT_ONNX)
    else:
        state.say("evaluate", "no float32 graph for the ledger: the model is too large for one")
    if bundle.grid is not None and bundle.grid.bits == 2:
        state.say(
            "evaluate", "no int2 graph with exact activations for the ledger: it would be hundreds of times slower"
        )
    elif bundle.grid is not None and bundle.grid.accuracy_level != 0:
        with contextlib.ExitStack() as stack:

            def copy() -> Target:
                return Target("bundle", EXACT_ONNX, stack.enter_context(exact(bundle)).path, None, task)

            found[EXACT_ONNX] = measure(copy, hash_values(merged, made), name=EXACT_ONNX)
    return found


def write_ledger(state: RunState, results: Mapping[str, Any]) -> str:
    """results/ledger.json: every step from the base to the device; the same as text."""
    from edgetune.evaluate.ledger import make_entries, plain, to_json
    from edgetune.evaluate.targets import ledger_names

    run_dir, names = state.run_dir, ledger_names(state.recipe)
    found = [(name, results[stage]) for stage, name in names.items() if stage in results]
    base = "base" if "base" in results else None
    entries = make_entries(found, run_dir.results, tokenizer_file=run_dir.bundle / "tokenizer.json", base=base)
    write_json(
        run_dir.results / "ledger.json",
        {"metric": state.recipe.evaluate.metric, "stages": to_json(entries), "provenance": provenance()},
    )
    return plain(entries)
