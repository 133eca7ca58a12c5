"""Survival of a fine-tune in its bundle: gain kept, what became of the change to each matrix, and the verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgetune.bundle.task import TASKS
from edgetune.evaluate.ledger import Kept, gains
from edgetune.evaluate.resample import Bootstrap
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.quantize.precisions import PRECISIONS
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle, write_manifest


def judge(recipe: Recipe, run_dir: RunDir, base: Path, results: Path, *, is_accepted: bool) -> dict[str, Any]:
    """The verdict on a run's bundle, from the answers in `results` of fine-tune, bundle and, where it has any, base.

    Writes results/survival.json and the verdict into the bundle's manifest; `is_accepted`: it passes all the same.
    """
    bundle = open_bundle(run_dir.bundle)
    before = "base" if (results / "base.json").is_file() else None
    kept = gains(before, "bundle", results, confidence=Bootstrap.confidence, samples=Bootstrap.samples)
    floor = recipe.export.min_gain_kept
    kept_enough = kept.holds(floor)
    layers = TASKS[recipe.model.task].layer_changes(bundle, run_dir, base)
    found = {
        "score": kept.score.to_json() if kept.score else None,
        "loss": kept.loss.to_json() if kept.loss else None,
        "min_gain_kept": floor,
        "kept_enough": kept_enough,
        "accepted": is_accepted and not kept_enough,
        "passed": kept_enough or is_accepted,
        "verdict": verdict(kept, floor),
        "cure": f"try {cures(recipe)}",
    }
    write_json(
        results / "survival.json",
        {**found, "layers": [dataclasses.asdict(layer) for layer in layers], "provenance": provenance()},
    )
    told = ("score", "loss", "min_gain_kept", "accepted")
    verified = {**bundle.verified, "passed": found["passed"], "gain_kept": {name: found[name] for name in told}}
    write_manifest(dataclasses.replace(bundle, verified=verified))
    return found


def verdict(kept: Kept, floor: float) -> str:
    """The gain kept in one line."""
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
        parts.append(f"{gain.kept:.1%} of the gain in {name} kept ({low:.1%} to {high:.1%})")
    rows = next(gain.rows for gain in (kept.score, kept.loss) if gain is not None)
    return f"{', '.join(parts)}, on {rows:,} rows; at least {floor:.1%} is asked for"


def cures(recipe: Recipe) -> str:
    """What may keep more of the gain, as keys of `edgetune run RECIPE --set`; what the recipe has is left out."""
    table, tries = recipe.export, []
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
