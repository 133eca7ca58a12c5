"""What wins back what int4 costs: rounding, repair against labels or teacher, training on the grid. Of a finished run.

    python -m benchmarks.repair runs/nano-snips

Every variant starts from the run's merged weights and is scored by the eval loss, with the device's numbers and its
int8 activations; the test rows are not looked at.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import load_at_start
from edgetune.bundle.generation import training_rows
from edgetune.files import read_json, write_json
from edgetune.model.base import load_merged
from edgetune.provenance import provenance
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.precisions import grid_of
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loss import use_segments

PLAIN = {"calibration_rows": 0, "repair_steps": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "rounded to the nearest": PLAIN,
    "rounded to the nearest, repair on labels": {**PLAIN, "repair_steps": 100},
    "GPTQ": {"repair_steps": 0},
    "GPTQ, repair on labels": {},
    "GPTQ, repair on the teacher": {"repair_on": "teacher"},
    "GPTQ, repair on both": {"repair_on": "both"},
    "GPTQ, 300 steps of repair on labels": {"repair_steps": 300},
    "trained on the grid, 100 steps": {"on_grid_steps": 100, "repair_steps": 0},
    "trained on the grid, then repair on labels": {"on_grid_steps": 100},
}
"""[export] settings."""


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--block-size", default=32, show_default=True, type=int)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/repair.json"))
def main(run: Path, block_size: int, out: Path) -> None:
    """Measure and write JSON; a task and block size that are there already are replaced."""
    load, run_dir = load_at_start(), RunDir(run)
    recipe = load_recipe(run_dir.recipe, [f"export.block_size={block_size}"])
    rows = training_rows(run_dir.merged, recipe, run_dir.cache)
    model = load_merged(run_dir.merged)
    use_segments(model)
    found = [{"name": "unquantised", "loss": eval_loss(model, rows.prepared, recipe, rows.pad_id), "seconds": 0.0}]
    for name, settings in VARIANTS.items():
        changed = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, **settings))
        grid = grid_of(changed.export)
        assert grid is not None
        with tempfile.TemporaryDirectory() as work:
            started = time.perf_counter()
            folder = quantize_decoder(run_dir.merged, Path(work) / "grid", changed, grid, rows=rows)
            seconds = time.perf_counter() - started
            is_rounding = grid.accuracy_level == 4
            model = load_for_loss(run_dir.merged, folder, rounds_inputs=is_rounding, vectors=folder.vectors)
            loss = eval_loss(model, rows.prepared, changed, rows.pad_id)
        found.append({"name": name, "loss": loss, "seconds": seconds})
        click.echo(f"{name:46} {loss:.4f}  {seconds:6.1f} s", err=True)
    name = read_json(run_dir.results / "summary.json")["recipe"]
    report = (
        read_json(out) if out.exists() else {"what": "eval loss of int4 weights, nats per trained token", "tasks": {}}
    )
    report["tasks"][f"{name}, blocks of {block_size}"] = {"variants": found, "load_at_start": load}
    write_json(out, {**report, "provenance": provenance()})


if __name__ == "__main__":
    main()
