"""Does the fine-tune survive int4? Finished runs, carried to the device by EdgeTune and by others, on the same rows.

    edgetune run recipes/nano-snips.toml && edgetune run recipes/quickstart.toml
    python -m benchmarks.survival runs/nano-snips runs/quickstart

For each run: the fine-tune as it was trained and merged; onnxruntime-genai's builder at its default int4 and with
k_quant and an int8 head; llama.cpp's Q4_0, Q4_K_M and Q8_0 of the same merged weights; EdgeTune's default, and
`export-best`. Each contestant is measured in a fresh process, on the run's test rows; the search sees eval rows
only. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start
from edgetune.evaluate.ledger import gains
from edgetune.files import read_json, write_json
from edgetune.hashes import hash_tree
from edgetune.provenance import provenance
from edgetune.run_dir import RunDir
from edgetune.run_scores import DISTRIBUTIONS

BUILDER = {
    "onnxruntime-genai default int4": {},
    "onnxruntime-genai k_quant, int8 head": {"algo_config": "k_quant", "matmul_mixed_precision": "last_matmul:int8"},
}
"""The builder's own options."""
GGUF = ("Q4_0", "Q4_K_M", "Q8_0")
WEIGHT_FILES = (".onnx", ".data", ".gguf", ".safetensors")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/survival.json"))
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Measure RUNS (finished run folders of decoders) and write JSON; contestants that it has already are kept."""
    load = load_at_start()
    tasks = read_json(out)["tasks"] if out.exists() else {}
    for path in runs:
        run_dir = RunDir(path)
        name = read_json(run_dir.results / "summary.json")["recipe"]
        before = tasks.get(name, {})
        merged = hash_tree(run_dir.merged)
        known = before["rows"] if before.get("merged_sha256") == merged else []
        rows = []
        for row in _rows(run_dir, {row["name"]: row for row in known}):
            rows.append(row)
            click.echo(f"{name}: {_line(row)}", err=True)
        tasks[name] = {
            "rows": rows,
            "merged_sha256": merged,
            "parameters": _parameters(run_dir.merged),
            "load_at_start": load,
        }
        write_json(out, {"what": __doc__.splitlines()[0], "tasks": tasks, "provenance": provenance()})


def _rows(run_dir: RunDir, known: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row after the other: what the run has measured, then the contestants, unless all of them are `known`."""
    parameters = _parameters(run_dir.merged)
    ours = {"tuned": "4-bit base + adapter (trained)", "merged": "merged, float32", "bundle": "EdgeTune default"}
    for stage, name in ours.items():
        result = read_json(run_dir.results / f"{stage}.json")
        distance, speed = result["distance"] or {}, result["speed"] or {}
        yield _row(
            name,
            {
                **{key: result["score"][key] for key in ("score", "interval", "loss")},
                "kl": distance.get("kl"),
                "same_next_token": distance.get("agreement"),
                "peak_bytes": result["peak_bytes"],
                "tokens_per_s": speed.get("tokens_per_s"),
            },
            _weight_bytes(run_dir.bundle) if stage == "bundle" else result["disk_bytes"],
            parameters,
            run_dir,
            run_dir.results / f"{stage}-answers.jsonl",
        )
    rest = [row for name, row in known.items() if name not in ours.values()]
    if len(rest) == 1 + len(BUILDER) + len(GGUF):
        yield from rest
        return
    with tempfile.TemporaryDirectory(dir=run_dir.path) as work:
        for name, kind, path in _contestants(run_dir, Path(work)):
            if kind not in ("bundle", "gguf"):
                yield {"name": name, "failed": kind}
                continue
            answers = Path(work) / "answers.jsonl"
            found = in_child(
                "benchmarks.survival_child",
                kind,
                path,
                run_dir.results / "rows.json",
                run_dir.results / DISTRIBUTIONS,
                answers,
                run_dir.merged / "tokenizer.json",
            )
            yield _row(name, found, _weight_bytes(path), parameters, run_dir, answers)


def _contestants(run_dir: RunDir, work: Path) -> Iterator[tuple[str, str, Path]]:
    """(name, kind, path) of each model that is made for this benchmark."""
    from benchmarks.gguf_model import quantize, write_gguf

    searched = work / "searched"
    command = [sys.executable, "-m", "edgetune", "export-best", str(run_dir.path), "--out", str(searched)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(done.stderr[-2000:])
    yield "EdgeTune export-best", "bundle", searched
    for name, options in BUILDER.items():
        try:
            yield name, "bundle", _by_builder(run_dir, work / name.replace(" ", "-"), options)
        except ValueError as error:  # widths that are no multiple of its blocks
            yield name, f"the builder fails: {error}", work
    source = write_gguf(run_dir.merged, work / "model.gguf")
    for kind in GGUF:
        yield f"llama.cpp {kind}", "gguf", quantize(source, work / f"{kind}.gguf", kind)


def _by_builder(run_dir: RunDir, out: Path, options: dict[str, str]) -> Path:
    """What onnxruntime-genai's builder makes of the merged folder, with EdgeTune's threads, template and manifest."""
    import dataclasses

    from edgetune.bundle.settings import write_settings
    from edgetune.export.decoder import _import_builder
    from edgetune.export.silence import silenced
    from edgetune.runtime.bundle import open_bundle, write_manifest

    bundle = open_bundle(run_dir.bundle)
    builder, _ = _import_builder()
    with silenced(), tempfile.TemporaryDirectory() as cache:
        given = [f"{name}={value}" for name, value in options.items()]
        parsed = builder.parse_extra_options("", str(run_dir.merged), str(out), "int4", "cpu", cache, given)
        builder.create_model("", str(run_dir.merged), str(out), "int4", "cpu", cache, **parsed)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (run_dir.bundle / file).exists():
            shutil.copy(run_dir.bundle / file, out)
    write_settings(out, chat=bundle.chat_format, context_length=bundle.context_length)
    write_manifest(dataclasses.replace(bundle, path=out, files={}, verified={}))
    return out


def _row(
    name: str, found: dict[str, Any], size_bytes: int, parameters: int, run_dir: RunDir, answers: Path
) -> dict[str, Any]:
    """One row of the table: what was measured, and the gain kept."""
    kept = _gains(run_dir, answers)
    return {
        "name": name,
        **found,
        "gain_kept_score": kept.score.to_json() if kept.score else None,
        "gain_kept_loss": kept.loss.to_json() if kept.loss else None,
        "file_bytes": size_bytes,
        "bits_per_weight": 8 * size_bytes / parameters,
    }


def _gains(run_dir: RunDir, answers: Path) -> Any:
    """Gain kept by a file of answers: beside those of the run's base and fine-tune."""
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("base", "tuned"):
            shutil.copy(run_dir.results / f"{stage}-answers.jsonl", folder)
        shutil.copy(answers, Path(folder) / "contestant-answers.jsonl")
        return gains("base", "contestant", Path(folder), confidence=0.95, samples=2000)


def _parameters(merged: Path) -> int:
    from edgetune.model.weights import find_tensors

    return sum(place.size_bytes // place.dtype.itemsize for place in find_tensors(merged).values())


def _weight_bytes(path: Path) -> int:
    """Bytes that hold weights: the .gguf file, or the bundle's graph with its data."""
    files = [path] if path.is_file() else [item for item in path.iterdir() if item.name.endswith(WEIGHT_FILES)]
    return sum(item.stat().st_size for item in files)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']:40} {row['failed']}"
    gain = (row["gain_kept_score"] or row["gain_kept_loss"] or {}).get("kept")
    score = "-" if row["score"] is None else f"{row['score']:.1%}"
    kept = "-" if gain is None else f"{gain:.3f}"
    kl = "-" if row["kl"] is None else f"{row['kl']:.5f}"
    speed = row["tokens_per_s"] or 0
    return (
        f"{row['name']:40} score {score:>6}  loss {row['loss']:.4f}  gain kept {kept}  KL {kl}  "
        f"{row['file_bytes'] / 2**20:6.2f} MiB ({row['bits_per_weight']:.2f} bits)  "
        f"peak {row['peak_bytes'] / 2**20:4.0f} MiB  {speed:7,.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
