"""Does the fine-tune survive on the device? A finished run, carried there by EdgeTune and by others, on the same rows.

    edgetune run recipes/quickstart.toml
    python -m benchmarks.survival runs/quickstart --task quickstart

One run at a time, for hours where the model is large: what was measured is written at once, and the next call goes on
there. Rows are: the fine-tune as it was trained and merged, which the run itself has measured; then each of
benchmarks.survival_ways, made now and measured in a fresh process. The test rows are looked at once for each; the
answers stay in RUN/survival. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import load_at_start
from benchmarks.smollm2 import NOTE
from benchmarks.survival_ways import Way, WayFailed, model_file, three_bits, ways_of
from edgetune.errors import EdgeTuneError
from edgetune.evaluate.evaluate import Result, evaluate, read_result
from edgetune.evaluate.ledger import Kept, gains
from edgetune.evaluate.target import Target
from edgetune.evaluate.texts import EVAL_SET_FILE
from edgetune.files import read_json, write_json
from edgetune.hashes import hash_tree
from edgetune.model.weights import find_tensors
from edgetune.provenance import provenance
from edgetune.recipe import load_recipe
from edgetune.run_dir import DISTRIBUTIONS, RunDir

WHAT = "Does the fine-tune survive on the device? Finished runs, carried there by EdgeTune and by others, same rows."
MEASURED_BY_THE_RUN = {"tuned": "as it was trained", "merged": "merged, not rounded"}
"""Name in results/ -> name of its row."""


@dataclass(frozen=True)
class Task:
    """A task whose run is published."""

    made_by: str
    """The command."""
    note: str = ""
    """Said beside its figures."""


TASKS = {
    "smollm2-snips": Task("python -m benchmarks.smollm2 recipes/smollm2-snips.toml", NOTE),
    "smollm2-home": Task("python -m benchmarks.smollm2 recipes/smollm2-home.toml", NOTE),
    "nano-snips": Task("edgetune run recipes/nano-snips.toml"),
    "quickstart": Task("edgetune run recipes/quickstart.toml"),
    "babyllama": Task("python -m benchmarks.babyllama TEXT"),
    "minilm-banking77": Task("edgetune run recipes/minilm-banking77.toml"),
}
FORMER_NAMES = {"babyllama-105": "babyllama"}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--task", "name", type=click.Choice(list(TASKS)), required=True, help="What the run is of.")
@click.option("--again", multiple=True, metavar="ROW", help="Measure this row anew; may be repeated.")
@click.option("--olive", default="python", show_default=True, help="A Python that has olive-ai.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/survival.json"))
def main(run: Path, name: str, again: tuple[str, ...], olive: str, out: Path) -> None:
    """Measure RUN, a finished run folder, and write JSON after each row; other tasks stay in it as they are."""
    load, run_dir = load_at_start(), RunDir(run)
    report = read_report(out)
    merged = hash_tree(run_dir.merged)
    rows = {key: row for key, row in _known(report, name, merged).items() if key not in again}
    ways = {way.name: way for way in ways_of(load_recipe(run_dir.recipe), olive)}
    names = [*MEASURED_BY_THE_RUN.values(), *ways]
    for key in names:
        if key in rows:
            continue
        rows[key] = row_of(run_dir, ways[key]) if key in ways else _row_of_the_run(run_dir, key)
        click.echo(line(rows[key]), err=True)
        report["tasks"][name] = {
            "rows": [rows[one] for one in names if one in rows],
            "made_by": TASKS[name].made_by,
            "note": TASKS[name].note,
            "merged_sha256": merged,
            "parameters": _parameters(run_dir.merged),
            "load_at_start": load,
            "provenance": provenance(),
        }
        write_json(out, {**report, "what": WHAT, "three_bits": three_bits(), "provenance": provenance()})


def read_report(path: Path) -> dict[str, Any]:
    """What is published so far; each task with its own provenance, which one file once had for all of them."""
    if not path.exists():
        return {"tasks": {}}
    found: dict[str, Any] = read_json(path)
    for values in found["tasks"].values():
        values.setdefault("provenance", found["provenance"])
    found["tasks"] = {FORMER_NAMES.get(name, name): values for name, values in found["tasks"].items()}
    return found


def _known(report: Mapping[str, Any], task: str, merged: str) -> dict[str, dict[str, Any]]:
    """The rows of a task that were measured on this merged model, by their names."""
    before = report["tasks"].get(task, {})
    rows = before["rows"] if before.get("merged_sha256") == merged else []
    return {row["name"]: row for row in rows if "commit" in row}


def row_of(run_dir: RunDir, way: Way) -> dict[str, Any]:
    """Make a way's model in a folder that vanishes, and measure it; one that cannot be made says why."""
    answers, facts = run_dir.path / "survival", {"name": way.name, **_when()}
    answers.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".survival.", dir=run_dir.path) as work:
        started = time.perf_counter()
        try:
            made = way.make(run_dir, Path(work).resolve())
            facts["made_s"] = round(time.perf_counter() - started, 1)
            task = load_recipe(run_dir.recipe).model.task
            target = Target("gguf" if made.is_file() else "bundle", _slug(way.name), made, None, task)
            found = evaluate(
                target, run_dir.results / EVAL_SET_FILE, answers, distributions=run_dir.results / DISTRIBUTIONS
            )
        except (WayFailed, EdgeTuneError) as error:
            return {**facts, "failed": " ".join(str(error).split())}
        return {**facts, **_measured(run_dir, found, answers / f"{target.name}-answers.jsonl", model_bytes(made))}


def _row_of_the_run(run_dir: RunDir, name: str) -> dict[str, Any]:
    """What the run has measured of its fine-tune."""
    stage = next(key for key, value in MEASURED_BY_THE_RUN.items() if value == name)
    values = read_json(run_dir.results / f"{stage}.json")
    found, commit = read_result(values), values["provenance"]["commit"]
    measured = _measured(run_dir, found, run_dir.results / f"{stage}-answers.jsonl", found.disk_bytes)
    return {"name": name, "commit": commit, "measured_unix": values["provenance"]["started_unix"], **measured}


def _measured(run_dir: RunDir, found: Result, answers: Path, size_bytes: int) -> dict[str, Any]:
    """The columns of a row."""
    kept, distance = _gains(run_dir, answers), found.distance
    columns = found.speed.columns if found.speed else {}
    return {
        **{key: getattr(found.score, key) for key in ("score", "interval", "loss", "rows")},
        "gain_kept_score": kept.score.to_json() if kept.score else None,
        "gain_kept_loss": kept.loss.to_json() if kept.loss else None,
        "kl": distance.kl if distance else None,
        "same_next_token": distance.agreement if distance else None,
        "same_answers": same_answers(run_dir.results / "tuned-answers.jsonl", answers),
        "file_bytes": size_bytes,
        "bits_per_weight": 8 * size_bytes / _parameters(run_dir.merged),
        "peak_bytes": found.peak_bytes,
        **{key: columns.get(key) for key in ("tokens_per_s", "latency_s")},
    }


def same_answers(tuned: Path, answers: Path) -> float | None:
    """Share of rows with the fine-tune's answer, letter by letter; None where nothing is answered."""
    pairs = zip(*(map(json.loads, path.read_text("utf-8").splitlines()) for path in (tuned, answers)), strict=True)
    same = [one["answer"] == other["answer"] for one, other in pairs if one["answer"] is not None]
    return sum(same) / len(same) if same else None


def _gains(run_dir: RunDir, answers: Path) -> Kept:
    """Gain kept by a file of answers: beside those of the run's base, where it has any, and fine-tune."""
    stages = [stage for stage in ("base", "tuned") if (run_dir.results / f"{stage}.json").is_file()]
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            shutil.copy(run_dir.results / f"{stage}-answers.jsonl", folder)
        shutil.copy(answers, Path(folder) / "contestant-answers.jsonl")
        base = "base" if "base" in stages else None
        return gains(base, "contestant", Path(folder), confidence=0.95, samples=2000)


def model_bytes(made: Path) -> int:
    """Bytes that hold weights: the .gguf file, or the bundle's graph with its data."""
    return sum(item.stat().st_size for item in ([made] if made.is_file() else made.iterdir()) if model_file(item))


def _parameters(merged: Path) -> int:
    return sum(place.size_bytes // place.dtype.itemsize for place in find_tensors(merged).values())


def _when() -> dict[str, Any]:
    found = provenance()
    return {"commit": found["commit"], "measured_unix": found["started_unix"]}


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    if "failed" in row:
        return f"{row['name']:40} {row['failed']}"
    gain = (row["gain_kept_score"] or row["gain_kept_loss"] or {}).get("kept")
    score = "-" if row["score"] is None else f"{row['score']:.1%}"
    kept = "-" if gain is None else f"{gain:.3f}"
    kl = "-" if row["kl"] is None else f"{row['kl']:.5f}"
    return (
        f"{row['name']:40} score {score:>6}  loss {row['loss']:.4f}  gain kept {kept}  KL {kl}  "
        f"{row['file_bytes'] / 2**20:6.2f} MiB ({row['bits_per_weight']:.2f} bits)  "
        f"peak {row['peak_bytes'] / 2**20:4.0f} MiB"
    )


if __name__ == "__main__":
    main()
