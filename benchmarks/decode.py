"""Decode and prefill speed of a bundle against llama.cpp on the same merged weights, in turn, in one run.

    python -m benchmarks.decode                                    # a 125 M-parameter Llama shape, random weights
    python -m benchmarks.decode --merged runs/nano-snips/merged    # the weights of a run
    python -m benchmarks.decode --smollm2 --out benchmarks/results/decode_smollm2.json    # SmolLM2-135M, see smollm2.py

Every measurement runs in a fresh child process; the contestants take turns for several rounds; the table shows medians
and spread. Needs `pip install -e '.[bench]'` (llama-cpp-python is built from source for this processor).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start, spread
from benchmarks.smollm2 import NOTE, write_folder
from edgetune.files import write_json
from edgetune.provenance import provenance

PROMPT_TOKENS = 128
NEW_TOKENS = 128
PEERS = ("Q4_0", "Q4_K_M")
LAST_ONLY = "edgetune int4 block 128, head for the last token only"
"""The default, which keeps the logits of a whole prompt, without those that no answer needs."""
OURS: dict[str, dict[str, Any]] = {
    "edgetune int4 block 32": {"block_size": 32},
    "edgetune int4 block 128": {},
    "edgetune int4 block 128 symmetric, int4 head": {"block_size": 128, "symmetric": True, "head_bits": 4},
    "edgetune int4 block 256 symmetric, int4 head": {"block_size": 256, "symmetric": True, "head_bits": 4},
}
"""[export] settings that are measured; {} is the default."""


@click.command()
@click.option("--merged", type=click.Path(exists=True, path_type=Path), help="Merged Llama folder of a run.")
@click.option("--smollm2", is_flag=True, help="SmolLM2-135M, from its .gguf file.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/decode.json"))
def main(merged: Path | None, smollm2: bool, rounds: int, out: Path) -> None:
    """Measure and write JSON."""
    if merged and smollm2:
        raise click.UsageError("--merged and --smollm2 exclude each other")
    load = load_at_start()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if smollm2:
            merged = write_folder(folder / "smollm2")
        merged = merged or _random_llama(folder / "random-125m")
        contestants = _build(merged, folder)
        results: dict[str, list[dict]] = {name: [] for name in contestants}
        for round_number in range(rounds):
            for name, (kind, path) in contestants.items():
                results[name].append(in_child("benchmarks.decode_child", kind, path, PROMPT_TOKENS, NEW_TOKENS))
                click.echo(f"round {round_number + 1} {name}: {results[name][-1]}", err=True)
        bandwidth = in_child("benchmarks.decode_child", "bandwidth", "-", PROMPT_TOKENS, NEW_TOKENS)
        sizes = {name: _weight_bytes(path) for name, (_, path) in contestants.items()}
        shape = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    note = {"note": NOTE} if smollm2 else {}
    report = {**_summary(results, sizes, bandwidth, shape), **note, "load_at_start": load}
    write_json(out, report)
    _print(report)


def _build(merged: Path, folder: Path) -> dict[str, tuple[str, Path]]:
    """Every contestant's files: name -> (kind, path)."""
    from benchmarks.gguf_model import quantize, write_gguf

    source = write_gguf(merged, folder / "model.gguf")
    contestants = {}
    for number, (name, settings) in enumerate(OURS.items()):
        contestants[name] = ("edgetune", _bundle(merged, folder / f"bundle-{number}", settings))
    plain = contestants["edgetune int4 block 128"][1]
    contestants[LAST_ONLY] = ("edgetune", head_for_the_last_token(plain, folder / "bundle-last"))
    for kind in PEERS:
        contestants[f"llama.cpp {kind}"] = ("llama.cpp", quantize(source, folder / f"{kind}.gguf", kind))
    return contestants


def _bundle(merged: Path, out: Path, settings: dict[str, Any]) -> Path:
    """The graph and settings that `edgetune export` writes, without verification: random weights answer nothing."""
    from edgetune.bundle.settings import write_settings
    from edgetune.export.decoder import build_decoder
    from edgetune.quantize.precisions import grid_of
    from edgetune.recipe import ExportTable
    from edgetune.runtime.bundle import ChatFormat

    out.mkdir()
    table = dataclasses.replace(ExportTable(), **settings)
    build_decoder(merged, out, precision=table.precision, grid=grid_of(table))
    chat = ChatFormat(template=None, bos_token=None, eos_token=None, bos_id=None, eos_ids=(0,))
    write_settings(
        out, chat=chat, context_length=json.loads((merged / "config.json").read_text())["max_position_embeddings"]
    )
    return out


def head_for_the_last_token(bundle: Path, out: Path) -> Path:
    """A copy of a bundle whose graph cuts the states before the head: logits (batch, 1, vocabulary) however long the
    prompt.
    """
    import onnx
    from onnx import TensorProto, helper

    shutil.copytree(bundle, out)
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    graph = model.graph
    number, head = next((n, node) for n, node in enumerate(graph.node) if "logits" in node.output)
    for name, value in (("last.start", -1), ("last.end", 2**31 - 1), ("last.axis", 1)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    cut = helper.make_node("Slice", [head.input[0], "last.start", "last.end", "last.axis"], ["last.states"], "last")
    head.input[0] = "last.states"
    graph.node.insert(number, cut)
    (logits,) = [item for item in graph.output if item.name == "logits"]
    logits.type.tensor_type.shape.dim[1].Clear()
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, str(out / "model.onnx"))
    return out


def _summary(results: dict, sizes: dict, bandwidth: dict, shape: dict) -> dict:
    rows = {}
    for name, rounds in results.items():
        decode = [item["decode_tokens_per_s"] for item in rounds]
        prefill = [item["prefill_tokens_per_s"] for item in rounds]
        rows[name] = {
            "decode_tokens_per_s": spread(decode),
            "prefill_tokens_per_s": spread(prefill),
            "peak_bytes": statistics.median(item["peak_bytes"] for item in rounds),
            "file_bytes": sizes[name],
            "share_of_bandwidth": statistics.median(decode) * sizes[name] / bandwidth["best"],
        }
    rival = results["llama.cpp Q4_K_M"]
    ratios = {
        name: spread([a["decode_tokens_per_s"] / b["decode_tokens_per_s"] for a, b in zip(rounds, rival, strict=True)])
        for name, rounds in results.items()
    }
    return {
        "what": "decode and prefill tokens/s, batch 1, same weights, contestants in turn, each in a fresh process",
        "model": shape,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": len(os.sched_getaffinity(0)),
        "rounds": len(rival),
        "read_bandwidth_bytes_per_s": bandwidth,
        "rows": rows,
        "decode_ratio_to_q4_k_m": ratios,
        "provenance": provenance(seed=0),
        "finished_unix": round(time.time()),
    }


def _print(report: dict) -> None:
    for name, row in report["rows"].items():
        ratio = report["decode_ratio_to_q4_k_m"][name]["median"]
        click.echo(
            f"{name:44} decode {row['decode_tokens_per_s']['median']:8.1f} tok/s ({ratio:.2f} x Q4_K_M)  "
            f"prefill {row['prefill_tokens_per_s']['median']:8.1f}  peak {row['peak_bytes'] / 2**20:6.0f} MiB  "
            f"file {row['file_bytes'] / 2**20:6.1f} MiB  {row['share_of_bandwidth']:.0%} of bandwidth"
        )


def _weight_bytes(path: Path) -> int:
    """Bytes that hold weights: the .gguf file, or the bundle's graph with its data."""
    files = [path] if path.is_file() else [item for item in path.iterdir() if ".onnx" in item.name]
    return sum(item.stat().st_size for item in files)


def _random_llama(folder: Path) -> Path:
    """A 125 M-parameter Llama shape with seeded random weights, and some tokenizer: speed depends on neither."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.model.base import resolve_base

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in resolve_base("edgetune:nano").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


if __name__ == "__main__":
    main()
