"""What each stage of a run takes, in seconds and MiB, beside what `edgetune plan` says: 6 M, 135 M, 0.5 B parameters.

    EDGETUNE_DATA=... python -m benchmarks.stages --work runs/stages

Each case is a run in a process of its own; the result is written after each, and a case that is there is not measured
again unless `--case` names it. 6 M is recipes/quickstart.toml; 135 M is SmolLM2 (see benchmarks.smollm2) on some
hundred rows; 0.5 B are random weights in the shape of Qwen2.5-0.5B, on so few rows and steps that their times tell the
price of a step and no more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import in_child, load_at_start
from benchmarks.smollm2 import NOTE, model_file
from edgetune.files import read_json, write_json
from edgetune.provenance import provenance

HALF_BILLION = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""The shape of Qwen2.5-0.5B."""
FEW = (
    "data.max_train_rows=64",
    "train.max_steps=4",
    "train.batch_size=2",
    "train.gradient_accumulation_steps=1",
    "evaluate.max_rows=8",
    "evaluate.max_new_tokens=8",
    "export.calibration_rows=32",
    "export.repair_steps=4",
)


@dataclass(frozen=True)
class Case:
    """A run that is measured."""

    recipe: Path
    settings: tuple[str, ...] = ()
    """As after --set."""
    base: Callable[[Path], Path] | None = None
    """Makes the base in a folder; without it the recipe's own."""
    note: str = ""


def random_base(folder: Path, shape: Mapping[str, Any] | None = None) -> Path:
    """A Llama of seeded random weights in bfloat16, by default of half a billion, with the nano model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.model.base import resolve_base

    torch.manual_seed(0)
    nano = resolve_base("edgetune:nano")
    ends = {key: value for key, value in read_json(nano / "config.json").items() if key.endswith("_token_id")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(LlamaConfig(**{**(shape or HALF_BILLION), **ends})).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    for path in (*nano.glob("tokenizer*.json"), *nano.glob("*.jinja")):
        shutil.copy(path, folder)
    return folder


CASES = {
    "6 M": Case(Path("recipes/quickstart.toml")),
    "135 M": Case(
        Path("recipes/smollm2-home.toml"),
        ("data.max_train_rows=600", "evaluate.max_rows=60"),
        lambda _: model_file(),
        NOTE,
    ),
    "0.5 B": Case(Path("recipes/smollm2-home.toml"), FEW, random_base, "random weights, few rows and steps"),
}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps the runs.")
@click.option("--case", "chosen", multiple=True, type=click.Choice(list(CASES)), help="Measure this one anew.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/stages.json"))
def main(work: Path, chosen: tuple[str, ...], out: Path) -> None:
    """Measure the cases that are not there yet, and write JSON after each."""
    cases: dict[str, Any] = read_json(out)["cases"] if out.exists() else {}
    for name in chosen or [name for name in CASES if name not in cases]:
        cases[name] = measure(CASES[name], work / name.replace(" ", "-"))
        ordered = {name: cases[name] for name in CASES if name in cases}
        what = "seconds and MiB of each stage of a run, beside what plan says"
        write_json(out, {"what": what, "cases": ordered, "provenance": provenance()})
        click.echo(f"{name}: {lines(cases[name])}", err=True)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in a process of its own, from its beginning."""
    load = load_at_start()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = [f"model.base={json.dumps(str(case.base(folder / 'base')))}"] if case.base else []
    found = in_child("benchmarks.stages_child", case.recipe, folder / "run", *base, *case.settings)
    facts = {"recipe": str(case.recipe), "settings": list(case.settings), "note": case.note}
    return {**found, **facts, "load_at_start": load, "provenance": provenance()}


def lines(found: Mapping[str, Any]) -> str:
    """A case in words."""
    parts = [f"{stage} {row['seconds']:.0f} s, {row['mib']:.0f} MiB" for stage, row in found["stages"].items()]
    return "; ".join(parts)


if __name__ == "__main__":
    main()
