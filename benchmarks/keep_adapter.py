"""What a base with its adapter beside it costs against the merged bundle: decode and prefill tokens/s, bytes.

    python -m benchmarks.keep_adapter                      # edgetune:nano after 50 steps of recipes/quickstart.toml
    python -m benchmarks.keep_adapter --run runs/mine      # a decoder's run with an adapter

Both bundles have the same grid and are verified by their export. Every measurement is a fresh process of plain
onnxruntime-genai; merged bundle, adapter active and adapter off take turns for several rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start, spread
from edgetune.files import read_json, write_json
from edgetune.provenance import provenance
from edgetune.runtime.bundle import adapter_file, open_bundle

PROMPT_TOKENS = 128
NEW_TOKENS = 128
STEPS = 50
MERGED = "merged"
Found = dict[str, Any]


@click.command()
@click.option("--run", "run", type=click.Path(exists=True, path_type=Path), help="Run folder with an adapter.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/keep_adapter.json"))
def main(run: Path | None, rounds: int, out: Path) -> None:
    """Measure and write JSON, after every round anew."""
    with tempfile.TemporaryDirectory() as work:
        run = run or _trained(Path(work) / "run")
        merged, kept = _bundles(run, Path(work))
        load = load_at_start()
        paths = {MERGED: merged, "adapter active": _adapter_of(kept), "adapter off": kept}
        results: dict[str, list[Found]] = {name: [] for name in paths}
        for number in range(rounds):
            for name, path in paths.items():
                results[name].append(in_child("benchmarks.decode_child", "edgetune", path, PROMPT_TOKENS, NEW_TOKENS))
                click.echo(f"round {number + 1} {name}: {results[name][-1]}", err=True)
            write_json(out, {**_report(results, paths, run), "load_at_start": load, "load_at_end": os.getloadavg()[0]})
    _print(read_json(out))


def _trained(run: Path) -> Path:
    """A run with an adapter of few steps: how good it is does not change its speed."""
    _edgetune("train", "recipes/quickstart.toml", "--out", run, "--set", f"train.max_steps={STEPS}")
    return run


def _bundles(run: Path, work: Path) -> tuple[Path, Path]:
    """The run's merged bundle and the one that keeps the adapter, both verified and without repair."""
    same = ("--set", "export.repair_steps=0", "--set", "export.calibration_rows=64")
    if not (run / "merged").is_dir():
        _edgetune("merge", run)
    _edgetune("export", run, "--out", work / MERGED, *same)
    _edgetune("export-adapter", run, "--out", work / "kept", *same)
    return work / MERGED, work / "kept"


def _edgetune(*arguments: str | Path) -> None:
    """Run a verb. Raises ClickException if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetune", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise click.ClickException(f"edgetune {' '.join(map(str, arguments))} failed:\n{done.stderr[-3000:]}")


def _adapter_of(bundle: Path) -> Path:
    return bundle / adapter_file(str(open_bundle(bundle).adapter))


def _report(results: dict[str, list[Found]], paths: dict[str, Path], run: Path) -> Found:
    merged = results[MERGED]
    rows = {}
    for name, rounds in results.items():
        rows[name] = {
            speed: spread([item[speed] for item in rounds]) for speed in ("decode_tokens_per_s", "prefill_tokens_per_s")
        }
        rows[name] |= {
            f"{speed}_ratio_to_merged": spread([a[speed] / b[speed] for a, b in zip(rounds, merged, strict=True)])
            for speed in ("decode_tokens_per_s", "prefill_tokens_per_s")
        }
        rows[name]["peak_bytes"] = spread([item["peak_bytes"] for item in rounds])
    kept = paths["adapter off"]
    config = read_json(run / "adapter" / "adapter_config.json")
    return {
        "what": "the merged bundle against the base with its adapter beside it: tokens/s, batch 1, contestants in turn",
        "adapter": {"r": config["r"], "target_modules": sorted(config["target_modules"])},
        "base": config["base_model_name_or_path"],
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": len(os.sched_getaffinity(0)),
        "rounds": len(merged),
        "rows": rows,
        "merged_bytes": _bytes(paths[MERGED]),
        "base_bytes": _bytes(kept),
        "adapter_bytes": paths["adapter active"].stat().st_size,
        "provenance": provenance(seed=0),
        "finished_unix": round(time.time()),
    }


def _bytes(bundle: Path) -> int:
    """Bytes of the graph and its data."""
    return sum((bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def _print(report: Found) -> None:
    for name, row in report["rows"].items():
        ratio = row["decode_tokens_per_s_ratio_to_merged"]
        click.echo(
            f"{name:16} decode {row['decode_tokens_per_s']['median']:8.1f} tok/s"
            f" ({ratio['median']:.3f} x merged, {ratio['least']:.3f} to {ratio['most']:.3f})"
            f"  prefill {row['prefill_tokens_per_s']['median']:8.1f}"
        )


if __name__ == "__main__":
    main()
