"""Speed, memory and size of classification bundles against the same merged model in PyTorch and in plain ONNX.

    EDGETUNE_DATA=... python -m benchmarks.encoder_speed --merged runs/minilm-banking77/merged

Every measurement is a fresh process that labels texts of BANKING77: one at a time (median and 95th percentile of the
latency, tokenizer included), then in batches of 32 texts of like length. Contestants take turns for several rounds.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, spread
from edgetune.files import write_json
from edgetune.provenance import provenance

PRECISIONS = ("fp32", "fp16", "int8", "int4")
MIB = 2**20


@click.command()
@click.option("--merged", type=click.Path(exists=True, path_type=Path), required=True, help="Merged folder of a run.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/encoder_speed.json"))
def main(merged: Path, rounds: int, out: Path) -> None:
    """Measure and write JSON."""
    with tempfile.TemporaryDirectory() as work:
        contestants = _build(merged, Path(work))
        results: dict[str, list[dict]] = {name: [] for name in contestants}
        for number in range(rounds):
            for name, (kind, path) in contestants.items():
                results[name].append(in_child("benchmarks.encoder_speed_child", kind, path))
                click.echo(f"round {number + 1} {name}: {results[name][-1]}", err=True)
        sizes = {name: _size(kind, path) for name, (kind, path) in contestants.items()}
    rows = {
        name: {**{key: spread([item[key] for item in found]) for key in found[0]}, "file_bytes": sizes[name]}
        for name, found in results.items()
    }
    eager = results["PyTorch eager"]
    report: dict[str, Any] = {
        "what": "labelling texts, same merged MiniLM, contestants in turn, each in a fresh process",
        "rounds": rounds,
        "rows": rows,
        "latency_ratio_to_eager": {
            name: spread([b["median_s"] / a["median_s"] for a, b in zip(found, eager, strict=True)])
            for name, found in results.items()
        },
        "provenance": provenance(),
    }
    write_json(out, report)
    for name, row in rows.items():
        click.echo(
            f"{name:28} {row['median_s']['median'] * 1e3:6.2f} ms (p95 {row['p95_s']['median'] * 1e3:6.2f})  "
            f"{row['texts_per_s']['median']:7.1f} texts/s  {row['peak_bytes']['median'] / MIB:5.0f} MiB  "
            f"{row['file_bytes'] / MIB:5.1f} MiB on disk"
        )


def _build(merged: Path, work: Path) -> dict[str, tuple[str, Path]]:
    """Every contestant's files: name -> (kind, path)."""
    from edgetune.export.classifier import build_classifier_bundle
    from edgetune.recipe import ExportTable, load_recipe

    recipe = load_recipe(Path("recipes/minilm-banking77.toml"))
    contestants = {}
    for precision in PRECISIONS:
        (folder := work / precision).mkdir()
        table = dataclasses.replace(ExportTable(), precision=precision)
        build_classifier_bundle(merged, folder, dataclasses.replace(recipe, export=table))
        contestants[f"EdgeTune {precision}"] = ("bundle", folder)
    plain, dynamic = _plain_onnx(merged, work)
    return {
        **contestants,
        "plain ONNX fp32": ("onnx", plain),
        "ONNX Runtime dynamic int8": ("onnx", dynamic),
        "PyTorch eager": ("eager", merged),
        "torch.compile": ("compile", merged),
    }


def _plain_onnx(merged: Path, work: Path) -> tuple[Path, Path]:
    """The model as torch.onnx.export gives it, in float32, and that after ONNX Runtime's quantize_dynamic."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from benchmarks.encoder_speed_child import load_torch

    classifier, tokenizer = load_torch(merged)
    classifier.encoder.set_attn_implementation("eager")
    example = torch.ones((2, 7), dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=classifier.spec.max_length)}
    paths = []
    for name in ("plain", "dynamic"):
        (work / name).mkdir()
        tokenizer.backend_tokenizer.save(str(work / name / "tokenizer.json"))
        paths.append(work / name)
    torch.onnx.export(
        classifier,
        (example, example.clone()),
        str(paths[0] / "model.onnx"),
        dynamo=True,
        dynamic_shapes=(axes, axes),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    quantize_dynamic(paths[0] / "model.onnx", paths[1] / "model.onnx", weight_type=QuantType.QInt8)
    return paths[0], paths[1]


def _size(kind: str, path: Path) -> int:
    """Bytes of weights and tokenizer on disk."""
    names = (".onnx", ".onnx.data", ".safetensors") if kind != "bundle" else (".onnx", ".onnx.data")
    files = [item for item in path.iterdir() if item.name.endswith(names) or item.name == "tokenizer.json"]
    return sum(item.stat().st_size for item in files)


if __name__ == "__main__":
    main()
