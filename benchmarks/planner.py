"""The planner's peak against the measured one, each training in a process of its own: python -m benchmarks.planner

Randomly initialised models of several shapes, sequences of 128 to 2,048 tokens, micro-batches of 1 to 8, ranks,
checkpointing and fused loss on and off, the base in 4 bits and as it is. On a CPU the peak is resident memory; what a
GPU needs is in benchmarks/gpu.py.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child
from edgetune.assets import nano
from edgetune.files import write_json
from edgetune.model.memory import Estimate, estimate
from edgetune.recipe import load_recipe

MIB = 1024**2
SHAPES = {
    "6M": {"hidden_size": 256, "intermediate_size": 768, "layers": 6, "heads": 4, "kv_heads": 4, "vocabulary": 4096},
    "32M": {"hidden_size": 512, "intermediate_size": 1408, "layers": 8, "heads": 8, "kv_heads": 4, "vocabulary": 16384},
    "63M, 128k": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "layers": 6,
        "heads": 6,
        "kv_heads": 2,
        "vocabulary": 131072,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "vocabulary": 49152,
    },
}
"""Llama shapes: the embedded base's, two in between, SmolLM2-135M's."""
WORDS = ("the", "lamp", "turn", "house", "light", "open", "window", "seven", "kitchen", "and", "door", "off")
STEPS = 2
MEASURED = ("peak_mib", "tokens_per_s")


def grid() -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and keys of a recipe."""
    base = {"data.max_seq_len": 512, "train.batch_size": 4, "lora.r": 16}
    for shape in ("6M", "32M", "63M, 128k"):
        yield shape, base
        yield shape, base | {"train.gradient_checkpointing": True}
        yield shape, base | {"train.fused_loss": False}
        yield shape, base | {"model.quantization": "none"}
        yield shape, base | {"data.max_seq_len": 128, "train.batch_size": 8}
        yield shape, base | {"data.max_seq_len": 2048, "train.batch_size": 1, "lora.r": 64}
        yield shape, base | {"data.max_seq_len": 1024, "train.batch_size": 2, "lora.dropout": 0.05}
    yield "32M", base | {"data.max_seq_len": 2048, "train.batch_size": 4, "train.gradient_checkpointing": True}
    yield "32M", base | {"data.max_seq_len": 128, "train.batch_size": 1}
    yield "135M", base | {"data.max_seq_len": 128, "train.batch_size": 2}
    yield "135M", base | {"data.max_seq_len": 512, "train.batch_size": 2}
    yield "135M", base | {"data.max_seq_len": 1024, "train.batch_size": 1, "train.gradient_checkpointing": True}
    yield "135M", base | {"data.max_seq_len": 512, "train.batch_size": 1, "model.quantization": "none"}


def make_base(shape: str, folder: Path) -> Path:
    """A model folder with random weights in bfloat16 and the embedded base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = write_config(shape, folder)
    if (path / "tokenizer.json").exists():
        return path
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(path)).to(torch.bfloat16).save_pretrained(path)
    for file in Path(nano.__file__).parent.glob("tokenizer*.json"):
        shutil.copy(file, path)
    return path


def write_config(shape: str, folder: Path) -> Path:
    """The model folder of a shape, with its config.json."""
    from transformers import LlamaConfig

    facts, path = SHAPES[shape], folder / shape.replace(", ", "-")
    config = LlamaConfig(
        vocab_size=facts["vocabulary"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        num_key_value_heads=facts["kv_heads"],
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=5,
        pad_token_id=1,
    )
    if not path.exists():
        config.save_pretrained(path)
    return path


def predicted(shape: str, keys: dict[str, Any], folder: Path) -> Estimate:
    """What the planner says of a configuration, whose texts fill every sequence."""
    recipe = load_recipe(write_recipe(folder, write_config(shape, folder), folder / "rows.jsonl", keys))
    return estimate(recipe, on="cpu", sample_tokens=recipe.data.max_seq_len)


def write_rows(folder: Path) -> Path:
    """Texts long enough to fill every sequence of the grid."""
    path, chosen = folder / "rows.jsonl", random.Random(0)
    texts = [" ".join(chosen.choice(WORDS) for _ in range(2500)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_recipe(folder: Path, base: Path, rows: Path, keys: dict[str, Any]) -> Path:
    """A recipe file of one configuration."""
    values = {
        "model.base": str(base),
        "data.train": str(rows),
        "data.too_long": "truncate",
        "data.loss_on": "all",
        "train.max_steps": STEPS,
        "train.gradient_accumulation_steps": 1,
        **keys,
    }
    lines = [f"[{table}]\n" for table in ("model", "data", "lora", "train")]
    text = "".join(
        line
        + "".join(
            f"{key.split('.')[1]} = {json.dumps(value)}\n"
            for key, value in values.items()
            if key.startswith(line[1:-2] + ".")
        )
        for line in lines
    )
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "planner.json",
    show_default=True,
)
@click.option("--most", type=int, help="Measure the first configurations only.")
@click.option(
    "--predict", is_flag=True, help="Measure nothing; plan what is in the JSON with the planner as it is now."
)
def main(out: Path, most: int | None, predict: bool) -> None:
    """Measure the grid and write the JSON, after every configuration."""
    measured = json.loads(out.read_text("utf-8"))["rows"] if predict else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = write_rows(folder)
        for number, (shape, keys) in enumerate(list(grid())[:most]):
            planned = predicted(shape, keys, folder)
            if measured is None:
                recipe = write_recipe(folder, make_base(shape, folder), texts, keys)
                found = in_child("benchmarks.planner_child", recipe, folder / f"run-{number}")
            else:
                found = _measured(measured, shape, keys)
            rows.append({**_configuration(shape, keys), **_planned(planned), **found})
            click.echo(f"{rows[-1]['planned_mib']:8.0f} planned {rows[-1]['peak_mib']:8.0f} measured  {shape} {keys}")
            if measured is None:
                write_json(out, report(rows))
    write_json(out, report(rows))


def _configuration(shape: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {"shape": shape, **keys}


def _planned(estimate: Estimate) -> dict[str, Any]:
    parts = {name: size / MIB for name, size in estimate.parts.items()}
    return {"planned_mib": estimate.peak_bytes / MIB, "parts_mib": parts}


def _measured(rows: list[dict[str, Any]], shape: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a configuration. Raises ClickException where it was not."""
    asked = _configuration(shape, keys)
    for row in rows:
        told = {"planned_mib", "parts_mib", *MEASURED}
        if {key: value for key, value in row.items() if key not in told} == asked:
            return {key: row[key] for key in MEASURED}
    raise click.ClickException(f"{shape} {keys} was not measured")


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows, and how near the planner came."""
    ratios = [row["planned_mib"] / row["peak_mib"] for row in rows]
    within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    summary = {"rows": len(rows), "within_10_percent": within, "least": min(ratios), "most": max(ratios)}
    return {"summary": summary, "rows": rows}


if __name__ == "__main__":
    main()
