"""BANKING77: test accuracy, size and calibration of int4 classifiers over several seeds, with all rows and with few.

    EDGETUNE_DATA=... python -m benchmarks.banking77 --work WORK

Each result is `edgetune run recipes/minilm-banking77.toml` in a process of its own, with another seed and, for few
rows, another seeded draw of so many training rows a label. WORK keeps the runs: a benchmark that was stopped goes on
there, and a run of another recipe or other settings is refused. The test split is scored once a run, after everything
is chosen.
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.measure import MINILM, data_folder, minilm
from edgetune.files import read_json, write_json
from edgetune.hashes import hash_values
from edgetune.model.base import hash_base
from edgetune.provenance import provenance
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir

RECIPE = Path("recipes/minilm-banking77.toml")
FEW_SHOT = ("train.epochs=10", "train.learning_rate=3e-4")
"""What a few-shot run sets besides its data; chosen on other labelled rows of the training split."""
FEW_SHOT_NOTE = (
    "few-shot runs: epochs and learning rate were chosen on other labelled rows of the training split; the drawn rows "
    "are the eval rows too, so that in effect the last checkpoint is kept, and their calibration error means nothing"
)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps the runs.")
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="Folder of the encoder.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--few-shot-seeds", default=2, show_default=True, help="Draws of few rows.")
@click.option("--shots", multiple=True, type=int, default=(0, 5, 10), show_default=True, help="Rows a label; 0: all.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/banking77.json"))
def main(work: Path, base: Path | None, seeds: int, few_shot_seeds: int, shots: tuple[int, ...], out: Path) -> None:
    """Measure and write JSON."""
    base = base or minilm()
    results = {}
    for count in shots:
        runs = [_run(work, base, count, seed) for seed in range(few_shot_seeds if count else seeds)]
        results[str(count) if count else "all"] = _summary(runs, is_few_shot=count > 0)
        click.echo(f"{count or 'all'} rows a label: {_line(results[str(count) if count else 'all'])}")
    write_json(
        out,
        {
            "what": "BANKING77, published test split of 3,080 rows, scored once a run; each run another seed; "
            f"{FEW_SHOT_NOTE}",
            "recipe": str(RECIPE),
            "few_shot_settings": list(FEW_SHOT),
            "base": MINILM,
            "base_sha256": hash_base(base),
            "seeds": {"all": seeds, "few": few_shot_seeds},
            "threads": torch.get_num_threads(),
            "rows_a_label": results,
            "provenance": provenance(),
        },
    )


def _run(work: Path, base: Path, shots: int, seed: int) -> dict[str, Any]:
    """One run with `shots` rows a label, or with all rows for 0."""
    settings = [f"model.base={base}", f"train.seed={seed}"]
    if shots:
        source = data_folder() / "banking77"
        drawn = _draw(source / "train.csv", work / f"data-{shots}-{seed}.csv", shots, seed)
        settings += [f"data.train={drawn}", f"data.eval={drawn}", f"data.test={source / 'test.csv'}", *FEW_SHOT]
    return run_recipe(RECIPE, work / f"{shots or 'all'}-{seed}", settings)


def run_recipe(recipe: Path, folder: Path, settings: list[str]) -> dict[str, Any]:
    """results/summary.json of `edgetune run`, made now unless it is there.

    Raises ClickException if the run fails, or if the folder holds a run of another recipe or of other settings.
    """
    summary = folder / "results" / "summary.json"
    made_from = summary.with_name("benchmark.json")
    asked = {"sha256": hash_values(recipe.read_text("utf-8"), settings)}
    if summary.exists():
        is_same = read_json(made_from) == asked if made_from.exists() else _is_run_of(recipe, folder, settings)
        if not is_same:
            raise click.ClickException(
                f"{folder} holds a run of another recipe or other settings: remove it, or give another --work"
            )
    else:
        command = [sys.executable, "-m", "edgetune", "run", str(recipe), "-o", str(folder)]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, check=False, stdout=sys.stderr)
        if done.returncode != 0:
            raise click.ClickException(f"{' '.join(command)} gave exit code {done.returncode}")
    write_json(made_from, asked)
    found: dict[str, Any] = json.loads(summary.read_text("utf-8"))
    return found


def _is_run_of(recipe: Path, folder: Path, settings: list[str]) -> bool:
    """Whether the folder's own record of what was asked is this recipe with these settings, key by key."""
    run_dir = RunDir(folder)
    if not run_dir.is_run:
        return False
    wanted = tomllib.loads(load_recipe(recipe, settings).to_toml())
    return {**tomllib.loads(run_dir.recipe.read_text("utf-8")), **run_dir.read()["asked"]} == wanted


def _draw(source: Path, out: Path, shots: int, seed: int) -> Path:
    """A file with `shots` training rows of each label, drawn with the seed."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(seed).shuffle(rows)
    kept: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if len(kept.setdefault(row["category"], [])) < shots:
            kept[row["category"]].append(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "category"])
        writer.writeheader()
        writer.writerows(row for label in sorted(kept) for row in kept[label])
    return out


def _summary(runs: list[dict[str, Any]], *, is_few_shot: bool) -> dict[str, Any]:
    """What the runs of one setting scored, run by run and together.

    No calibration error of few-shot runs: their temperature was chosen on the rows that they learned from.
    """
    rows = {row["name"]: [run_row(run, row["name"]) for run in runs] for row in runs[0]["table"]}
    bundles = rows["int4 bundle"]
    merged = rows["merged"]
    return {
        "accuracy": {name: mean([row["score"] for row in found]) for name, found in rows.items()},
        "int4_minus_merged": mean([a["score"] - b["score"] for a, b in zip(bundles, merged, strict=True)]),
        "macro_f1": mean([run["classification"]["macro_f1"] for run in runs]),
        "ece": None if is_few_shot else mean([run["classification"]["ece"] for run in runs]),
        "bundle_bytes": max(row["disk_bytes"] for row in bundles),
        "merged_bytes": max(row["disk_bytes"] for row in merged),
        "train_peak_bytes": max(run["train"]["peak_bytes"] for run in runs),
        "wall_s": mean([run["wall_s"] for run in runs]),
        "verified": all(check["passed"] for run in runs for check in run["verification"] if check["is_required"]),
        "commits": commits(runs),
    }


def run_row(run: dict[str, Any], name: str) -> dict[str, Any]:
    """A run's row of this name."""
    found: dict[str, Any] = next(row for row in run["table"] if row["name"] == name)
    return found


def commits(runs: list[dict[str, Any]]) -> list[str | None]:
    """The commit that made each run; "+" after it if files differed."""
    return [run["provenance"]["commit"] for run in runs]


def mean(values: list[float]) -> dict[str, Any]:
    """Mean, sample deviation (None of one value), least, most, and each."""
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "least": min(values),
        "most": max(values),
        "each": values,
    }


def _line(result: dict[str, Any]) -> str:
    int4, lost = result["accuracy"]["int4 bundle"], result["int4_minus_merged"]
    return (
        f"int4 {int4['mean']:.2%} ({int4['least']:.2%} to {int4['most']:.2%}), "
        f"{lost['mean'] * 100:+.2f} points to merged, {result['bundle_bytes'] / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
