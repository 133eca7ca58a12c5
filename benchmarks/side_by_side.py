"""Eight adapters side by side against eight trainings: time and memory, in turn: python -m benchmarks.side_by_side

Eight learning rates, bases of random weights (benchmarks.planner's). A training alone is a process of its own, measured
once a round and counted eight times: seconds from its start to its end, peak memory, and seconds in training steps,
which are those of a second training on the same loaded base, warm. Side by side nothing is warm.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start, spread
from benchmarks.planner import make_base, write_recipe, write_rows
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.recipe import Recipe, load_recipe

RATES = (1e-4, 2e-4, 3e-4, 5e-4, 8e-4, 1.2e-3, 2e-3, 3e-3)
SETTINGS = (("6M", 1, 128, 10), ("135M", 1, 64, 2), ("6M", 2, 512, 4))
"""Shape of the base, sequences in a micro-batch, their length in tokens, steps."""
CHILD = "--child"


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--most", type=int, help="Measure the first settings only.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/side_by_side.json"))
def main(rounds: int, most: int | None, out: Path) -> None:
    """Measure all settings in turn, round by round; writes JSON after each."""
    load, found = load_at_start(), [[] for _ in SETTINGS[:most]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipes = [_write_recipe(folder / str(number), *setting) for number, setting in enumerate(SETTINGS[:most])]
        for round_number in range(rounds):
            for setting, recipe, pairs in zip(SETTINGS, recipes, found, strict=False):
                pairs.append({way: _measure(way, recipe) for way in _order(round_number)})
                click.echo(f"round {round_number + 1}, {setting}: {pairs[-1]}", err=True)
                write_json(out, {**_report(found), "load_at_start": load, "provenance": provenance()})


def _report(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What is measured so far."""
    return {
        "what": "seconds and peak resident memory of a process that trains one adapter, and of one that trains eight "
        "side by side; eight of the first against one of the second, in turn",
        "adapters": len(RATES),
        "rows": [_row(setting, pairs) for setting, pairs in zip(SETTINGS, found, strict=False) if pairs],
    }


def _order(round_number: int) -> tuple[str, str]:
    return ("alone", "beside") if round_number % 2 == 0 else ("beside", "alone")


def _write_recipe(folder: Path, shape: str, batch_size: int, length: int, steps: int) -> Path:
    folder.mkdir()
    keys = {
        "data.max_seq_len": length,
        "train.batch_size": batch_size,
        "train.max_steps": steps,
        "train.eval_steps": 10**6,
        "train.checkpoint_steps": 10**6,
    }
    return write_recipe(folder, make_base(shape, folder.parent), write_rows(folder), keys)


def _measure(way: str, recipe: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        return in_child("benchmarks.side_by_side", CHILD, way, recipe, work)


def _row(setting: tuple[str, int, int, int], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    shape, batch_size, length, steps = setting
    row: dict[str, Any] = {"base": shape, "batch_size": batch_size, "max_seq_len": length, "steps": steps}
    row["rounds"] = len(pairs)
    for key in ("wall_s", "steps_s", "peak_bytes"):
        row |= {f"{way}_{key}": spread([pair[way][key] for pair in pairs]) for way in ("alone", "beside")}
    for name, key in (("times_faster", "wall_s"), ("times_faster_in_steps", "steps_s")):
        row[name] = spread([len(RATES) * pair["alone"][key] / pair["beside"][key] for pair in pairs])
    row["times_the_memory"] = spread([pair["beside"]["peak_bytes"] / pair["alone"]["peak_bytes"] for pair in pairs])
    differences = [abs(pair["alone"]["eval_losses"][0] - pair["beside"]["eval_losses"][0]) for pair in pairs]
    return {**row, "largest_loss_difference": max(differences)}


def _child(way: str, path: Path, work: Path) -> dict[str, Any]:
    """Train one adapter, or all side by side."""
    import psutil

    from edgetune.model.base import load_base
    from edgetune.model.lend import lent
    from edgetune.run_dir import RunDir
    from edgetune.train.loop import train
    from edgetune.train.side_by_side import train_side_by_side

    variants: dict[str, Recipe] = {
        f"rate-{number}": load_recipe(path, [f"train.learning_rate={rate}"]) for number, rate in enumerate(RATES)
    }
    first = variants["rate-0"]
    base = load_base(first.model)
    if way == "beside":
        found = train_side_by_side(variants, work, base=base)
        losses = [result.eval_loss for result in found.results.values() if result]
        steps_s, peak_bytes = found.train_s, found.peak_bytes
    else:
        with lent(base):
            result = train(first, RunDir(work / "alone"), base=base)
        losses, peak_bytes = [result.eval_loss], result.peak_bytes
    wall_s = time.time() - psutil.Process().create_time()
    if way == "alone":
        with lent(base):
            steps_s = train(first, RunDir(work / "again"), base=base).train_s
    return {"wall_s": wall_s, "steps_s": steps_s, "peak_bytes": peak_bytes, "eval_losses": losses}


if __name__ == "__main__":
    if CHILD in sys.argv:
        way, recipe, work = sys.argv[sys.argv.index(CHILD) + 1 :]
        print(json.dumps(_child(way, Path(recipe), Path(work))))
    else:
        main()
