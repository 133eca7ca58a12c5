"""Training speed of classifiers, EdgeTune against transformers.Trainer + PEFT + bitsandbytes: same rows, base, adapter.

    EDGETUNE_DATA=... python -m benchmarks.classify_throughput

Each measurement is a fresh child process that trains once on the same rows, drawn from BANKING77's training split, and
reports rows a second, peak memory, and the accuracy on the same other rows of that split. EdgeTune's seconds include
the pass over all training rows that starts its head. The Trainer has its users' usual set-up: the library's sequence
classifier in 4 bits, an adapter on all linear layers and a trained head; once with batches as they come, padded to
their longest row, once grouped by length.
"""

from __future__ import annotations

import csv
import random
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import MINILM, data_folder, in_child, load_at_start, minilm, spread
from edgetune.files import write_json
from edgetune.provenance import provenance

RECIPE = Path("recipes/minilm-banking77.toml")
CONTESTANTS = ("edgetune", "trainer", "trainer-grouped")
COMPUTE_DTYPE = "float32"
"""For all contestants, and the faster one where the processor lacks bfloat16."""
EVAL_ROWS = 1000
DRAW_SEED = 0


@click.command()
@click.option("--epochs", default=3.0, show_default=True)
@click.option("--rows", default=2000, show_default=True, help="Training rows.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="Folder of the encoder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/classify_throughput.json"))
def main(epochs: float, rows: int, rounds: int, base: Path | None, out: Path) -> None:
    """Measure and write JSON, after every round anew."""
    base, load = base or minilm(), load_at_start()
    results: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as data:
        counts = _draw(data_folder() / "banking77" / "train.csv", Path(data), rows)
        for seed in range(rounds):
            for name in CONTESTANTS:
                found = in_child("benchmarks.classify_throughput_child", name, data, epochs, base, seed)
                results[name].append(found)
                click.echo(f"round {seed + 1} {name}: {found}", err=True)
            write_json(out, report := _report(results, counts, epochs, load))
    for name, row in report["contestants"].items():
        click.echo(
            f"{name:16} {row['rows_per_s']['median']:6.1f} rows/s  "
            f"peak {row['peak_bytes']['median'] / 2**20:6.0f} MiB  accuracy {row['accuracy']['median']:.2%}"
        )
    click.echo(f"ratio to {report['peer']}: {report['ratio']['median']:.2f}")


def _report(results: dict[str, list[dict]], counts: dict[str, int], epochs: float, load: float) -> dict[str, Any]:
    """What the finished rounds found."""
    contestants = {
        name: {key: spread([item[key] for item in found]) for key in found[0]} for name, found in results.items()
    }
    peer = max(CONTESTANTS[1:], key=lambda name: contestants[name]["rows_per_s"]["median"])
    ratios = [a["rows_per_s"] / b["rows_per_s"] for a, b in zip(results["edgetune"], results[peer], strict=True)]
    return {
        "what": "the same BANKING77 rows, NF4 base + LoRA + head, contestants in turn, each in a fresh process",
        "recipe": str(RECIPE),
        "base": MINILM,
        "compute_dtype": COMPUTE_DTYPE,
        "data_rows": counts,
        "draw_seed": DRAW_SEED,
        "epochs": epochs,
        "rounds": len(ratios),
        "contestants": contestants,
        "peer": peer,
        "ratio": spread(ratios),
        "load_at_start": load,
        "provenance": provenance(),
    }


def _draw(source: Path, out: Path, count: int) -> dict[str, int]:
    """Write train.csv and eval.csv of `count` and EVAL_ROWS other rows; how many each holds.

    Eval rows have labels that were drawn for training too.
    """
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(DRAW_SEED).shuffle(rows)
    labels = {row["category"] for row in rows[:count]}
    others = [row for row in rows[count:] if row["category"] in labels]
    parts = {"train": rows[:count], "eval": others[:EVAL_ROWS]}
    for part, drawn in parts.items():
        with (out / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "category"])
            writer.writeheader()
            writer.writerows(drawn)
    return {part: len(drawn) for part, drawn in parts.items()}


if __name__ == "__main__":
    main()
