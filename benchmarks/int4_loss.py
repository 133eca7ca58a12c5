"""What the deployment grids cost in loss: published weights on the grid, without any repair.

    EDGETUNE_DATA=... python -m benchmarks.int4_loss

stories260K and babyllama-105 (llama2.c files), TinyStories validation text. Deterministic: torch
computes with the very numbers that a bundle holds, so the result does not depend on a runtime.
"""

from __future__ import annotations

import os
import re
import tempfile
from itertools import product
from pathlib import Path

import click
import torch

from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.quantize.grid import dequantize
from edgetune.quantize.methods import round_weight
from edgetune.recipe import Method
from edgetune.runtime.grid import Grid

TOKENS = 30720
MODELS = {"stories260K": ("stories260K.bin", "tok512.model"), "babyllama-105": ("model5000.bin", "tok105.model")}
GRIDS = [
    *(
        {"bits": 4, "block_size": size, "symmetric": symmetric, "head_bits": 8}
        for size, symmetric in product((16, 32, 128, 256), (False, True))
    ),
    *({"bits": 4, "block_size": size, "symmetric": True, "head_bits": 4} for size in (128, 256)),
    {"bits": 8, "block_size": 32, "symmetric": False, "head_bits": 8},
]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/int4_loss.json"))
def main(out: Path) -> None:
    """Measure and write JSON."""
    data = Path(os.environ["EDGETUNE_DATA"])
    models = {name: _measure(name, data) for name in MODELS}
    write_json(
        out,
        {
            "what": "mean loss in nats per token of published weights on a grid, matrices and embedding",
            "tokens": TOKENS,
            "models": models,
            "provenance": provenance(),
        },
    )


def _measure(name: str, data: Path) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests import llama2c

    weights, tokenizer_file = MODELS[name]
    with tempfile.TemporaryDirectory() as work:
        folder = llama2c.write_folder(data / name / weights, data / name / tokenizer_file, Path(work))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = _windows(tokenizer, data / "tinystories/valid_first_stories.txt", model.config.max_position_embeddings)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    grids = []
    for grid, method in product(GRIDS, ("rtn", "search")):
        _put_on_grid(model, grid, method)
        loss = _loss(model, ids)
        grids.append({**grid, "method": method, "loss": loss})
        model.load_state_dict(original)
    return {"float32_loss": _loss(model, ids), "grids": grids}


def _windows(tokenizer, text: Path, context: int) -> torch.Tensor:
    """TOKENS ids in windows of the context, a start token before each story; story ends are guessed."""
    ids: list[int] = []
    for story in re.split(r"\n\n(?=Once |One day)", text.read_text(encoding="utf-8")):
        ids += [1, *tokenizer.backend_tokenizer.encode(story.strip(), add_special_tokens=False).ids]
        if len(ids) > TOKENS:
            break
    return torch.tensor(ids[:TOKENS]).view(-1, context)


@torch.no_grad()
def _put_on_grid(model, grid: dict, method: Method) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            is_head = "embed_tokens" in name or "lm_head" in name
            bits = grid["head_bits"] if is_head else grid["bits"]
            own = Grid(bits, grid["block_size"], grid["symmetric"])
            parameter.copy_(dequantize(round_weight(parameter, own, method)))


@torch.no_grad()
def _loss(model, ids: torch.Tensor) -> float:
    return float(sum(model(input_ids=part, labels=part).loss * len(part) for part in ids.split(8)) / len(ids))


if __name__ == "__main__":
    main()
