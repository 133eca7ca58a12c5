"""Survival of a fine-tune in its bundle: gain kept, closeness, what became of each matrix's change, and the verdict.

The verdict looks both ways: a bundle that lost the fine-tune is refused, and so is one that has become another model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.bundle.task import TASKS
from edgetune.evaluate.closeness import Closeness
from edgetune.evaluate.ledger import Kept, closeness, gains
from edgetune.evaluate.resample import Bootstrap
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.quantize.precisions import PRECISIONS
from edgetune.quantize.repair import longer
from edgetune.recipe import ExportTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import Bundle, open_bundle, write_manifest


def judge(recipe: Recipe, run_dir: RunDir, base: Path, results: Path, *, is_accepted: bool) -> dict[str, Any]:
    """The verdict on a run's bundle, from the answers in `results` of fine-tune, bundle and, where it has any, base.

    Writes results/survival.json and the verdict into the bundle's manifest; `is_accepted`: it passes all the same.
    """
    bundle = open_bundle(run_dir.bundle)
    before = "base" if (results / "base.json").is_file() else None
    draws: dict[str, Any] = {"confidence": Bootstrap.confidence, "samples": Bootstrap.samples}
    kept, close = gains(before, "bundle", results, **draws), closeness("bundle", results, **draws)
    export = recipe.export
    kept_enough = kept.holds(export.min_gain_kept, export.max_gain_kept)
    is_close = close.holds(export.max_kl, export.max_changed_rows)
    layers = TASKS[recipe.model.task].layer_changes(bundle, run_dir, base)
    holds = kept_enough and is_close
    found = {
        "score": kept.score.to_json() if kept.score else None,
        "loss": kept.loss.to_json() if kept.loss else None,
        "closeness": close.to_json(),
        "min_gain_kept": export.min_gain_kept,
        "max_gain_kept": export.max_gain_kept,
        "max_kl": export.max_kl,
        "max_changed_rows": export.max_changed_rows,
        "kept_enough": kept_enough,
        "is_close": is_close,
        "accepted": is_accepted and not holds,
        "passed": holds or is_accepted,
        "verdict": verdict(kept, close, export),
        "cure": f"try {cures(recipe, bundle)}",
    }
    write_json(
        results / "survival.json",
        {**found, "layers": [dataclasses.asdict(layer) for layer in layers], "provenance": provenance()},
    )
    told = ("score", "loss", "closeness", "min_gain_kept", "accepted")
    verified = {**bundle.verified, "passed": found["passed"], "gain_kept": {name: found[name] for name in told}}
    write_manifest(dataclasses.replace(bundle, verified=verified))
    return found


def verdict(kept: Kept, close: Closeness, asked: ExportTable) -> str:
    """Gain kept and closeness in one line; what is too much is said to be."""
    parts = []
    for name, gain in (("score", kept.score), ("loss", kept.loss)):
        if gain is None:
            continue
        if gain.kept is None or gain.interval is None:
            parts.append(
                f"in {name} these rows show no gain of fine-tuning of which a share could be told"
                + (", and the bundle is worse than base and fine-tune" if gain.is_worse else "")
            )
            continue
        low, high = gain.interval
        too_much = f", more than the {asked.max_gain_kept:.0%} allowed" if gain.exceeds(asked.max_gain_kept) else ""
        parts.append(f"{gain.kept:.1%} of the gain in {name} kept ({low:.1%} to {high:.1%}){too_much}")
    rows = next(gain.rows for gain in (kept.score, kept.loss) if gain is not None)
    gains = f"{', '.join(parts)}, on {rows:,} rows; at least {asked.min_gain_kept:.1%} is asked for"
    return "; ".join([gains, *_distances(close, asked)])


def _distances(close: Closeness, asked: ExportTable) -> Iterator[str]:
    """How far the bundle is from the fine-tune, beside what is allowed."""
    if close.kl is not None:
        limit = "more than the" if close.is_far(asked.max_kl) else "at most"
        yield f"{close.kl:.4f} nats a token from the fine-tune, {limit} {asked.max_kl:g} allowed"
    if close.changed_rows is not None:
        limit = "more than the" if close.has_changed(asked.max_changed_rows) else "at most"
        yield f"{close.changed_rows:.1%} of the rows changed, {limit} {asked.max_changed_rows:.0%} allowed"


def cures(recipe: Recipe, bundle: Bundle) -> str:
    """What may keep the fine-tune, as keys of `edgetune run RECIPE --set`; what the recipe has is left out."""
    table, tries = recipe.export, []
    if more := (bundle.provenance.get("repair") or {}).get("epochs_more"):
        tries.append(f"train.epochs={longer(recipe.train.epochs, more):g}")
    precision = PRECISIONS[table.precision]
    if precision.has_few_bits:
        if TASKS[recipe.model.task].IS_DECODER:
            tries.append(f"export.repair_steps={max(4 * table.repair_steps, 200)}")
        if table.block_size > 16 and 16 in precision.block_sizes:
            tries.append("export.block_size=16")
    if precision.wider:
        tries.append(f'export.precision="{precision.wider}"')
    if table.merge_base != "auto":
        tries.append('export.merge_base="auto"')
    return f"edgetune run RECIPE --set {' or --set '.join(tries)}" if tries else "edgetune run RECIPE with more rows"
