"""Training speed of EdgeTune against transformers.Trainer + PEFT + bitsandbytes: same rows, base, adapter, in turn.

    EDGETUNE_DATA=... python -m benchmarks.train_throughput

Each measurement is a fresh child process that trains once on the same encoded rows of SNIPS and reports trained tokens
(those that count in the loss) a second, peak memory, and the loss on the same eval rows, computed for both by one
function. The Trainer runs in the type that is faster for it, padding each batch to its longest row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.measure import in_child, load_at_start, spread
from edgetune.files import write_json
from edgetune.provenance import provenance

RECIPE = Path("recipes/nano-snips.toml")
CONTESTANTS = ("edgetune", "trainer-bf16", "trainer-fp32")


@click.command()
@click.option("--rows", default=2048, show_default=True, help="Training rows; each contestant sees each once.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--base", default="edgetune:nano", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/train_throughput.json"))
def main(rows: int, rounds: int, base: str, out: Path) -> None:
    """Measure and write JSON."""
    load = load_at_start()
    results: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    for round_number in range(rounds):
        for name in CONTESTANTS:
            with tempfile.TemporaryDirectory() as work:
                child = "benchmarks.train_throughput_child"
                results[name].append(in_child(child, name, rows, base, round_number, work))
            click.echo(f"round {round_number + 1} {name}: {results[name][-1]}", err=True)
    report = {**_summary(results, rows, base), "load_at_start": load}
    write_json(out, report)
    for name, row in report["contestants"].items():
        click.echo(
            f"{name:13} {row['trained_tokens_per_s']['median']:8.1f} trained tok/s  "
            f"peak {row['peak_bytes']['median'] / 2**20:6.0f} MiB  eval loss {row['eval_loss']['median']:.4f}"
        )
    click.echo(f"ratio to the faster Trainer: {report['ratio']['median']:.2f}")


def _summary(results: dict[str, list[dict]], rows: int, base: str) -> dict:
    contestants = {
        name: {key: spread([item[key] for item in rounds]) for key in rounds[0]} for name, rounds in results.items()
    }
    peers = [name for name in CONTESTANTS if name != "edgetune"]
    best = max(peers, key=lambda name: contestants[name]["trained_tokens_per_s"]["median"])
    ratios = [
        ours["trained_tokens_per_s"] / theirs["trained_tokens_per_s"]
        for ours, theirs in zip(results["edgetune"], results[best], strict=True)
    ]
    return {
        "what": "one pass over the same SNIPS rows, NF4 base + LoRA, contestants in turn, each in a fresh process",
        "recipe": str(RECIPE),
        "base": base,
        "rows": rows,
        "rounds": len(ratios),
        "contestants": contestants,
        "peer": best,
        "ratio": spread(ratios),
        "provenance": provenance(),
    }


if __name__ == "__main__":
    main()
