"""What an adaptation is judged by: scores on old and new eval rows before and after, and how far the rows are apart.

In the flow: adapt_run.py calls it around the training, and once more for the bundles; answers in results/adapt-<kind>.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgetune.files import read_json
from edgetune.hashes import hash_file, hash_tree, hash_values
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

Progress = Callable[[Mapping[str, Any]], None]
KINDS = ("old", "new")
COMPARED_ROWS = 5_000
"""Rows of each kind that drift is measured on, at most."""


def score_adapter(recipe: Recipe, out: RunDir, kind: str, name: str, adapter: Path, progress: Progress | None) -> Any:
    """The result of an adapter on the old or new eval rows, measured now or before; answers in results/adapt-<kind>."""
    from edgetune.data.replay import NEW_EVAL, OLD_EVAL
    from edgetune.evaluate.evaluate import Target, evaluate, read_result
    from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
    from edgetune.model.base import hash_base, resolve_base

    model, folder = recipe.model, out.results / f"adapt-{kind}"
    base = resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code)
    target = Target("tuned", name, adapter, dataclasses.replace(model, base=str(base), revision=None), model.task)
    rows = str(out.mixture / (OLD_EVAL if kind == "old" else NEW_EVAL))
    judged = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, eval=rows, test=None))
    folder.mkdir(parents=True, exist_ok=True)
    eval_set = prepare_eval_set(judged, target, folder, split="eval")
    inputs, stage = hash_values(eval_set.fingerprint, hash_tree(adapter), hash_base(base), model), f"{kind}-{name}"
    file = folder / f"{name}.json"
    if out.is_current(stage, inputs) and file.exists():
        return read_result(read_json(file))
    result = evaluate(target, folder / EVAL_SET_FILE, folder, progress=progress)
    out.finish(stage, inputs)
    return result


def score_bundle(out: RunDir, kind: str, name: str, bundle: Path, progress: Progress | None) -> None:
    """The same of a bundle, on the rows that `score_adapter` has written."""
    from edgetune.evaluate.evaluate import evaluate
    from edgetune.evaluate.targets import target_at
    from edgetune.evaluate.texts import EVAL_SET_FILE
    from edgetune.verify_run import bundle_hash

    folder = out.results / f"adapt-{kind}"
    inputs, stage = hash_values(hash_file(folder / EVAL_SET_FILE), bundle_hash(bundle)), f"{kind}-{name}"
    if not (out.is_current(stage, inputs) and (folder / f"{name}.json").exists()):
        target = dataclasses.replace(target_at(str(bundle)), name=name)
        evaluate(target, folder / EVAL_SET_FILE, folder, progress=progress)
        out.finish(stage, inputs)


def change(out: RunDir, kind: str, *names: str) -> dict[str, Any]:
    """Scores and losses of two results, before and after, and how sure the difference is."""
    from edgetune.evaluate.compare import compare

    folder = out.results / f"adapt-{kind}"
    before, after = (folder / f"{name}-answers.jsonl" for name in names)
    found, losses = compare(before, after), [read_json(folder / f"{name}.json")["score"]["loss"] for name in names]
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


def judge(found: Mapping[str, Any], allowed_drop: float, *, of: str = "") -> dict[str, Any]:
    """Whether the old rows' score, `of` what, fell no further than allowed, in values and in words."""
    old = found["old"]
    is_loss = old["metric"] == "loss"
    fell = old["difference"] / max(old["before"], 1e-9) if is_loss else -old["difference"]
    passed = fell <= allowed_drop
    if is_loss:
        verdict = f"the loss{of} on the old rows went from {old['before']:.4f} to {old['after']:.4f}"
        verdict += f", {fell:+.1%}; allowed: {allowed_drop:+.1%}"
    else:
        verdict = f"the old rows' score{of} went from {old['before']:.1%} to {old['after']:.1%}"
        verdict += f", {-100 * fell:+.1f} points; allowed: {-100 * allowed_drop:+.1f}"
    return {**found, "allowed_drop": allowed_drop, "fell": fell, "passed": passed, "verdict": verdict}


def drift_of(old: Recipe, new: Recipe, before: Mapping[str, Any]) -> dict[str, Any]:
    """How far the new rows are from the old ones: data.drift's measures, and the loss of the adapter as it was."""
    from edgetune.data.drift import Rows, drift
    from edgetune.data.replay import sample
    from edgetune.model.base import load_tokenizer, resolve_base

    model = old.model
    base = resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code)
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
