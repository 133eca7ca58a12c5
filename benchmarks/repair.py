"""What wins back what int4 costs: ways of rounding, and of repair after that.

    python -m benchmarks.repair runs/quickstart runs/babyllama

Every way starts from the run's merged weights and ends in a bundle, which is scored on the run's eval rows; the test
rows are not looked at. The default is measured with several seeds. Results are written after each bundle.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import load_at_start
from edgetune.bundle.generation import are_conversations, build_bundle, training_rows, verified_prompts
from edgetune.evaluate.bundle import BundleAnswerer
from edgetune.evaluate.live import eval_rows
from edgetune.evaluate.score import score
from edgetune.files import read_json, write_json
from edgetune.model.base import resolve_base
from edgetune.provenance import provenance
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir

SEEDS = 3


@dataclass(frozen=True)
class Way:
    """One way to the device: what [export] says for it, and with how many seeds it is measured."""

    name: str
    export: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1


WAYS = (
    Way("not rounded", {"precision": "fp32", "repair_steps": 0}),
    Way("rounded to the nearest", {"method": "search", "repair_steps": 0}),
    Way("GPTQ", {"repair_steps": 0}),
    Way("GPTQ, 100 steps of repair", {"repair_steps": 100}, SEEDS),
    Way("GPTQ, 300 steps of repair", {"repair_steps": 300}),
    Way("GPTQ, 100 steps of repair on the teacher", {"repair_steps": 100, "repair_on": "teacher"}),
)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/repair.json"))
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Measure and write JSON, anew."""
    report: dict[str, Any] = {"what": "int4 bundles on eval rows", "load_at_start": load_at_start(), "tasks": {}}
    for run in runs:
        run_dir = RunDir(run)
        recipe = load_recipe(run_dir.recipe)
        task: dict[str, Any] = {"metric": recipe.evaluate.metric, "ways": {}}
        report["tasks"][read_json(run_dir.results / "summary.json")["recipe"]] = task
        for seed, way in ((seed, way) for seed in range(SEEDS) for way in WAYS if seed < way.seeds):
            measured = measure(run_dir, recipe, way, seed)
            task["rows"] = measured.pop("rows")
            task["ways"].setdefault(way.name, {"export": way.export, "seeds": []})["seeds"].append(measured)
            click.echo(f"{way.name:46} {line(measured)}", err=True)
            write_json(out, {**report, "provenance": provenance()})


def line(measured: dict[str, Any]) -> str:
    """What was measured of a bundle, in a few words."""
    parts = [f"loss {measured['loss']:.4f}"]
    parts += [f"score {measured['score']:.1%}"] if measured["score"] is not None else []
    parts += [f"{measured['quantize_s']:.0f} s"] if measured["quantize_s"] is not None else []
    return ", ".join(parts)


def measure(run_dir: RunDir, recipe: Recipe, way: Way, seed: int) -> dict[str, Any]:
    """Score, loss (nats per trained token) and number of eval rows of a bundle; seconds to its integers."""
    changed = dataclasses.replace(
        recipe,
        train=dataclasses.replace(recipe.train, seed=seed),
        export=dataclasses.replace(recipe.export, **way.export),
    )
    is_chat = are_conversations(verified_prompts(recipe))
    rows = eval_rows(recipe, resolve_base(recipe.model.base, recipe.model.revision))
    grid, quantized, started = grid_of(changed.export), None, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=run_dir.path) as work:
        if grid is not None:
            drawn = training_rows(run_dir.merged, recipe, run_dir.cache)
            quantized = quantize_decoder(run_dir.merged, Path(work) / "grid", changed, grid, rows=drawn)
        quantize_s = time.perf_counter() - started
        (bundle := Path(work) / "bundle").mkdir()
        build_bundle(run_dir.merged, bundle, changed, is_chat=is_chat, quantized=quantized)
        found, _ = score(BundleAnswerer(bundle), rows)
    return {
        "seed": seed,
        "score": found.score,
        "loss": found.loss,
        "rows": len(rows.rows),
        "quantize_s": quantize_s if quantized else None,
    }


if __name__ == "__main__":
    main()
