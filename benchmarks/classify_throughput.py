"""Training speed of classifiers, EdgeTune against transformers.Trainer + PEFT + bitsandbytes: same rows, base, adapter.

    EDGETUNE_DATA=... python -m benchmarks.classify_throughput

Each measurement is a fresh child process that trains once on the same rows of BANKING77's training split and reports
rows a second, peak memory, and the accuracy on the same eval rows of that split. The Trainer has its users' usual
set-up: the library's sequence classifier in 4 bits, an adapter on all linear layers and a trained head; once with
batches as they come, padded to their longest row, once grouped by length.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.measure import MINILM, in_child, minilm, spread
from edgetune.files import write_json
from edgetune.provenance import provenance

RECIPE = Path("recipes/minilm-banking77.toml")
CONTESTANTS = ("edgetune", "trainer", "trainer-grouped")


@click.command()
@click.option("--epochs", default=1.0, show_default=True)
@click.option("--rows", default=10_000, show_default=True, help="Training rows at most.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="Folder of the encoder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/classify_throughput.json"))
def main(epochs: float, rows: int, rounds: int, base: Path | None, out: Path) -> None:
    """Measure and write JSON."""
    base = base or minilm()
    results: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    for seed in range(rounds):
        for name in CONTESTANTS:
            found = in_child("benchmarks.classify_throughput_child", name, rows, epochs, base, seed)
            results[name].append(found)
            click.echo(f"round {seed + 1} {name}: {found}", err=True)
    contestants = {
        name: {key: spread([item[key] for item in found]) for key in found[0]} for name, found in results.items()
    }
    peer = max(CONTESTANTS[1:], key=lambda name: contestants[name]["rows_per_s"]["median"])
    ratios = [a["rows_per_s"] / b["rows_per_s"] for a, b in zip(results["edgetune"], results[peer], strict=True)]
    report = {
        "what": "the same BANKING77 rows, NF4 base + LoRA + head, contestants in turn, each in a fresh process",
        "recipe": str(RECIPE),
        "base": MINILM,
        "epochs": epochs,
        "rounds": rounds,
        "contestants": contestants,
        "peer": peer,
        "ratio": spread(ratios),
        "provenance": provenance(),
    }
    write_json(out, report)
    for name, row in contestants.items():
        click.echo(
            f"{name:16} {row['rows_per_s']['median']:6.1f} rows/s  "
            f"peak {row['peak_bytes']['median'] / 2**20:6.0f} MiB  accuracy {row['accuracy']['median']:.2%}"
        )
    click.echo(f"ratio to {peer}: {report['ratio']['median']:.2f}")


if __name__ == "__main__":
    main()
