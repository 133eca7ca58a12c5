"""Speed, memory and size of classification bundles against the same merged model in PyTorch and in plain ONNX.

    EDGETUNE_DATA=... python -m benchmarks.encoder_speed --merged runs/minilm-banking77/merged

Every measurement is a fresh process that labels texts of BANKING77's test split, whose own labels are not read: one
at a time (median and 95th percentile of the latency, tokenizer included), then in batches of 32 texts of like length.
The peak memory is that of labelling single texts, loading included. All contestants use the same tokenizer library.
The agreement is the share of the batched texts that a contestant gives the label that PyTorch eager gives them.
Contestants take turns for several rounds; torch.compile is left out where it does not work.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start, spread
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.runtime.session import usable_cores

PRECISIONS = ("fp32", "fp16", "int8", "int4")
EAGER = "PyTorch eager"
MIB = 2**20
Found = dict[str, Any]


@click.command()
@click.option("--merged", type=click.Path(exists=True, path_type=Path), required=True, help="Merged folder of a run.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/encoder_speed.json"))
def main(merged: Path, rounds: int, out: Path) -> None:
    """Measure and write JSON, after every round anew."""
    load = load_at_start()
    with tempfile.TemporaryDirectory() as work:
        contestants, attention = _build(merged, Path(work))
        results: dict[str, list[Found | None]] = {name: [] for name in contestants}
        sizes = {name: _size(kind, path) for name, (kind, path) in contestants.items()}
        for number in range(rounds):
            for name, (kind, path) in contestants.items():
                results[name].append(found := _measure(kind, path))
                shown = found and {key: value for key, value in found.items() if key != "labels"}
                click.echo(f"round {number + 1} {name}: {shown}", err=True)
            write_json(out, report := _report(results, sizes, attention, load))
    for name, row in report["rows"].items():
        click.echo(f"{name:28} {_line(row)}")


def _report(
    results: dict[str, list[Found | None]], sizes: dict[str, int], attention: str, load: float
) -> dict[str, Any]:
    """What the finished rounds found."""
    eager = results[EAGER]
    return {
        "what": "labelling texts, same merged MiniLM, contestants in turn, each in a fresh process; null: did not work",
        "rounds": len(eager),
        "rows": {name: _row(found, eager, sizes[name]) for name, found in results.items()},
        "latency_ratio_to_eager": {name: _ratio(found, eager) for name, found in results.items()},
        "plain_onnx_attention": attention,
        "threads": usable_cores(),
        "load_at_start": load,
        "provenance": provenance(),
    }


def _measure(kind: str, path: Path) -> Found | None:
    """One measurement; None where torch.compile does not work on this machine. Raises ClickException."""
    try:
        return in_child("benchmarks.encoder_speed_child", kind, path)
    except click.ClickException as error:
        if kind != "compile":
            raise
        click.echo(error.message, err=True)
        return None


def _row(found: list[Found | None], eager: list[Found], size: int) -> Found | None:
    """What a contestant measured over all rounds; None if a round failed."""
    if None in found:
        return None
    names = [name for name in found[0] if name != "labels"]
    pairs = zip(found, eager, strict=True)
    same = [statistics.mean(a == b for a, b in zip(mine["labels"], its["labels"], strict=True)) for mine, its in pairs]
    return {
        **{name: spread([item[name] for item in found]) for name in names},
        "agreement": spread(same),
        "file_bytes": size,
    }


def _ratio(found: list[Found | None], eager: list[Found]) -> dict[str, float] | None:
    """How many times faster than PyTorch eager one text is; None if a round failed."""
    if None in found:
        return None
    return spread([its["median_s"] / mine["median_s"] for mine, its in zip(found, eager, strict=True)])


def _line(row: Found | None) -> str:
    if row is None:
        return "-"
    return (
        f"{row['median_s']['median'] * 1e3:6.2f} ms (p95 {row['p95_s']['median'] * 1e3:6.2f})  "
        f"{row['texts_per_s']['median']:7.1f} texts/s  {row['peak_bytes']['median'] / MIB:5.0f} MiB  "
        f"{row['file_bytes'] / MIB:5.1f} MiB on disk  {row['agreement']['median']:.2%} as eager"
    )


def _build(merged: Path, work: Path) -> tuple[dict[str, tuple[str, Path]], str]:
    """Every contestant's files, name -> (kind, path), and the attention of plain ONNX. The int4 bundle is as shipped:
    rounded for texts drawn as `edgetune export` draws them.
    """
    from edgetune.bundle.classification import build_classifier_bundle, draw_texts
    from edgetune.data.prepare import examples
    from edgetune.recipe import load_recipe

    recipe = load_recipe(Path("recipes/minilm-banking77.toml"))
    drawn = draw_texts(examples(recipe, "train"), recipe.export.calibration_rows, seed=recipe.train.seed)
    contestants = {}
    for precision in PRECISIONS:
        (folder := work / precision).mkdir()
        table = dataclasses.replace(recipe.export, precision=precision)
        texts = drawn if precision == "int4" else []
        build_classifier_bundle(merged, folder, dataclasses.replace(recipe, export=table), texts)
        contestants[f"EdgeTune {precision}"] = ("bundle", folder)
    plain, dynamic, attention = _plain_onnx(merged, work)
    return {
        **contestants,
        "plain ONNX fp32": ("onnx", plain),
        "ONNX Runtime dynamic int8": ("onnx", dynamic),
        EAGER: ("eager", merged),
        "torch.compile": ("compile", merged),
    }, attention


def _plain_onnx(merged: Path, work: Path) -> tuple[Path, Path, str]:
    """The folders of plain ONNX and of the same after ONNX Runtime's quantize_dynamic, and the attention they have."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, dynamic = work / "plain", work / "dynamic"
    for folder in (plain, dynamic):
        folder.mkdir()
        shutil.copy(merged / "tokenizer.json", folder)
    graph, attention = export_plain(merged, plain / "model.onnx")
    quantize_dynamic(graph, dynamic / "model.onnx", weight_type=QuantType.QInt8)
    return plain, dynamic, attention


def export_plain(merged: Path, out: Path) -> tuple[Path, str]:
    """The classifier as torch.onnx.export gives it, in float32, and its attention: sdpa, or eager where torch cannot
    export that.
    """
    from benchmarks.encoder_speed_child import load_torch

    classifier = load_torch(merged)
    try:
        _export(classifier, out, "sdpa")
    except Exception as error:  # torch.export and onnxscript raise many kinds
        click.echo(f"torch.onnx cannot export sdpa attention: {error}", err=True)
        _export(classifier, out, "eager")
        return out, "eager"
    return out, "sdpa"


def _export(classifier: Any, out: Path, attention: str) -> None:
    import torch

    classifier.encoder.set_attn_implementation(attention)
    example = torch.ones((2, 7), dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=classifier.spec.max_length)}
    torch.onnx.export(
        classifier,
        (example, example.clone()),
        str(out),
        dynamo=True,
        dynamic_shapes=(axes, axes),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def _size(kind: str, path: Path) -> int:
    """Bytes of weights and tokenizer on disk."""
    names = (".onnx", ".onnx.data", ".safetensors") if kind != "bundle" else (".onnx", ".onnx.data")
    files = [item for item in path.iterdir() if item.name.endswith(names) or item.name == "tokenizer.json"]
    return sum(item.stat().st_size for item in files)


if __name__ == "__main__":
    main()
