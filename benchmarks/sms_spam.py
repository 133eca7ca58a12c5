"""SMS spam: F1 of the positive class of int4 classifiers, on a seeded split of an imbalanced set.

    EDGETUNE_DATA=... python -m benchmarks.sms_spam --work WORK

The set has no published split. Its texts are shuffled with seed 0 and cut into 70 % train, 10 % eval and 20 % test; all
copies of a text fall into the same part. Each result is `edgetune run recipes/minilm-sms-spam.toml` with another
training seed; the split stays. WORK keeps the runs: a benchmark that was stopped goes on there.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import click

from benchmarks.banking77 import commits, mean, run_recipe, run_row
from benchmarks.measure import MINILM, data_folder, minilm
from edgetune.files import write_json
from edgetune.model.base import hash_base
from edgetune.provenance import provenance

RECIPE = Path("recipes/minilm-sms-spam.toml")
SPLIT_SEED = 0
SHARES = {"train": 0.7, "eval": 0.1, "test": 0.2}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps the runs.")
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="Folder of the encoder.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/sms_spam.json"))
def main(work: Path, base: Path | None, seeds: int, out: Path) -> None:
    """Measure and write JSON."""
    base = base or minilm()
    counts = split(data_folder() / "sms-spam" / "sms.tsv", work / "sms-spam")
    settings = [f"model.base={base}", f"data.train={work / 'sms-spam'}"]
    runs = [run_recipe(RECIPE, work / f"sms-{seed}", [*settings, f"train.seed={seed}"]) for seed in range(seeds)]
    bundles = [run["classification"] for run in runs]
    report = {
        "what": "SMS spam, F1 of the label spam; texts shuffled with the split's seed, copies of a text kept together",
        "recipe": str(RECIPE),
        "base": MINILM,
        "base_sha256": hash_base(base),
        "seeds": seeds,
        "split_seed": SPLIT_SEED,
        "split": counts,
        "f1": {row["name"]: mean([run_row(run, row["name"])["score"] for run in runs]) for row in runs[0]["table"]},
        "f1_interval": runs[0]["classification"]["positive_f1_interval"],
        "accuracy": mean([found["accuracy"] for found in bundles]),
        "ece": mean([found["ece"] for found in bundles]),
        "bundle_bytes": max(run_row(run, "int4 bundle")["disk_bytes"] for run in runs),
        "commits": commits(runs),
        "wall_s": mean([run["wall_s"] for run in runs]),
        "provenance": provenance(SPLIT_SEED),
    }
    write_json(out, report)
    found = report["f1"]["int4 bundle"]
    click.echo(f"F1 of spam, int4 bundle: {found['mean']:.2%} ({found['least']:.2%} to {found['most']:.2%})")


def split(source: Path, out: Path) -> dict[str, dict[str, int]]:
    """Write train, eval and test.csv (columns label, text); rows of each label in each."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = [(label, text) for label, text in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    texts = sorted({text for _, text in rows})
    random.Random(SPLIT_SEED).shuffle(texts)
    part_of: dict[str, str] = {}
    start = 0.0
    for part, share in SHARES.items():
        first, last = round(start * len(texts)), round((start + share) * len(texts))
        part_of |= dict.fromkeys(texts[first:last], part)
        start += share
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for part in SHARES:
        mine = [row for row in rows if part_of[row[1]] == part]
        with (out / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "text"])
            writer.writerows(mine)
        counts[part] = {label: sum(row[0] == label for row in mine) for label in ("ham", "spam")}
    return counts


if __name__ == "__main__":
    main()
