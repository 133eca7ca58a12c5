"""Survival of a fine-tune in its bundle: gain kept, what became of the change to each matrix, and the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.evaluate.ledger import Kept, gains
from edgetune.export.graph import Weights, join
from edgetune.export.read_graph import GraphWeights
from edgetune.files import write_json
from edgetune.lora.merge import BaseTensors
from edgetune.lora.read import read_record
from edgetune.model.weights import find_tensors
from edgetune.provenance import provenance
from edgetune.quantize.layer_change import LayerChange, layer_change
from edgetune.quantize.precisions import PRECISIONS
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import GRAPH, Bundle, open_bundle, write_manifest


def judge(recipe: Recipe, run_dir: RunDir, base: Path, results: Path, *, is_accepted: bool) -> dict[str, Any]:
    """The verdict on a run's bundle, from the answers of base, fine-tune and bundle in `results`.

    Writes results/survival.json and the verdict into the bundle's manifest; `is_accepted`: it passes all the same.
    """
    bundle = open_bundle(run_dir.bundle)
    table = recipe.evaluate
    names = None if recipe.is_classifier else "base"
    kept = gains(names, "bundle", results, confidence=table.confidence, samples=table.bootstrap_samples)
    floor = recipe.export.min_gain_kept
    kept_enough = kept.holds(floor)
    layers: list[LayerChange] = []
    if not recipe.is_classifier:
        merge_base = read_record(run_dir.merged).get("merge_base", "trained")
        layers = list(layer_changes(bundle, run_dir.merged, BaseTensors(run_dir.adapter, base, merge_base)))
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
        if not recipe.is_classifier:
            tries.append(f"export.repair_steps={max(4 * table.repair_steps, 200)}")
        if table.block_size > 16 and 16 in precision.block_sizes:
            tries.append("export.block_size=16")
    if precision.wider:
        tries.append(f'export.precision="{precision.wider}"')
    if table.merge_base != "auto":
        tries.append('export.merge_base="auto"')
    return f"edgetune run RECIPE --set {' or --set '.join(tries)}" if tries else "edgetune run RECIPE with more rows"


def layer_changes(bundle: Bundle, merged: Path, base: Mapping[str, Tensor]) -> Iterator[LayerChange]:
    """Each matrix of the bundle that fine-tuning changed, one after the other.

    Nothing for a float bundle, nor for one by "awq", whose matrices have other channels than the base's.

    `base`: the base's tensors as they were merged on. Raises BundleError for a damaged graph.
    """
    if bundle.grid is None or bundle.provenance.get("method") == "awq":
        return
    source = Weights(find_tensors(merged))
    graph = GraphWeights(bundle.path / GRAPH, source.places)
    for node in graph.nodes:
        if node.op_type != "MatMulNBits":
            continue  # the embedding: what an adapter changes of it is not low-rank, and rare
        before, after = join(base, node.sources), source.read(node.sources)
        if not before.float().equal(after.float()):
            yield layer_change(node.name, before, after, graph.matrix(node))
