"""What each way of rounding costs in loss: a run's merged decoder on the grid, by method, block and symmetry.

    python -m benchmarks.methods runs/nano-snips

Loss on the run's eval rows, in torch with the very numbers that a bundle holds and inputs rounded to int8 as the
kernels of onnxruntime on a CPU do: the result depends on no runtime. Two bits also after repair.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import click

from edgetune.bundle.candidates import stored_bytes
from edgetune.bundle.generation import training_rows
from edgetune.files import write_json
from edgetune.model.base import load_merged
from edgetune.provenance import provenance
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.hessian import Rows
from edgetune.quantize.precisions import grid_of
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.quantize.truth import MOST_EVAL_ROWS
from edgetune.recipe import Method, Recipe, load_recipe

METHODS = get_args(Method)
GRIDS = [
    *(("int4", size, symmetric) for size, symmetric in product((32, 128), (False, True))),
    *(("int2", size, symmetric) for size, symmetric in product((16, 32), (False, True))),
]
REPAIR_STEPS = 200


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/methods.json"))
def main(run: Path, out: Path) -> None:
    """Measure, print and write JSON."""
    recipe, merged = load_recipe(run / "recipe.toml"), run / "merged"
    with tempfile.TemporaryDirectory() as work:
        rows = training_rows(merged, recipe, Path(work) / "cache")
        whole = eval_loss(load_merged(merged), rows.prepared, recipe, rows.pad_id)
        click.echo(f"float32: {whole:.4f}")
        found = []
        for row in _measure(recipe, merged, rows, Path(work)):
            click.echo(_line(row))
            found.append(row)
    write_json(
        out,
        {
            "what": "eval loss in nats per trained token of a merged decoder on a grid, inputs rounded to int8",
            "base": recipe.model.base,
            "eval_rows": min(MOST_EVAL_ROWS, len(rows.prepared.eval)),
            "calibration_rows": recipe.export.calibration_rows,
            "repair_steps": REPAIR_STEPS,
            "float32_loss": whole,
            "rows": found,
            "provenance": provenance(recipe.train.seed),
        },
    )


def _measure(recipe: Recipe, merged: Path, rows: Rows, work: Path) -> Iterator[dict[str, Any]]:
    """Each method on each grid; two bits on the asymmetric grid are repaired too."""
    for (precision, size, symmetric), method in product(GRIDS, METHODS):
        is_repaired = precision == "int2" and not symmetric
        table = dataclasses.replace(
            recipe.export,
            precision=precision,
            block_size=size,
            symmetric=symmetric,
            accuracy_level=4,
            method=method,
            repair_steps=REPAIR_STEPS if is_repaired else 0,
        )
        changed = dataclasses.replace(recipe, export=table)
        grid = grid_of(table)
        assert grid is not None
        started = time.monotonic()
        folder = quantize_decoder(merged, work / "grid", changed, grid, rows=rows)
        wall_s = time.monotonic() - started
        repair = folder.record.get("repair", {})
        if repair:
            loss, wall_s = repair["loss_before"], wall_s - repair["wall_s"]
        else:
            model = load_for_loss(merged, folder, rounds_inputs=True, vectors=folder.vectors)
            loss = eval_loss(model, rows.prepared, changed, rows.pad_id)
        yield {
            "precision": precision,
            "block_size": size,
            "symmetric": symmetric,
            "method": method,
            "loss": loss,
            "repaired_loss": repair.get("loss_after"),
            "size_bytes": sum(stored_bytes(matrix) for matrix in folder.values()),
            "wall_s": wall_s,
        }


def _line(row: dict[str, Any]) -> str:
    symmetry = "symmetric" if row["symmetric"] else "asymmetric"
    repaired = f", repaired {row['repaired_loss']:.4f}" if row["repaired_loss"] is not None else ""
    grid = f"{row['precision']} block {row['block_size']} {symmetry}"
    return f"{grid}, {row['method']}: {row['loss']:.4f}{repaired}, {row['wall_s']:.0f} s"


if __name__ == "__main__":
    main()
