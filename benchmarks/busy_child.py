"""One measurement of benchmarks.busy in a process of its own: prints one JSON line, the "seconds" of a unit of work."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path("recipes/quickstart.toml")
STEPS = 8
REPAIR_STEPS = 10
EVAL_ROWS = 8
"""Few, so that a measurement is nearly all steps."""
PROMPT_TOKENS, NEW_TOKENS = 32, 32


def main() -> None:
    """Arguments: the work, a path or "-"."""
    work, path = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"seconds": WORKS[work](path, Path(folder))}))


def _recipe(*settings: str) -> Any:
    from edgetune.recipe import load_recipe

    return load_recipe(
        RECIPE,
        [
            "data.max_train_rows=400",
            "train.eval_steps=1000000",
            "train.checkpoint_steps=1000000",
            f"train.max_steps={STEPS}",
            *settings,
        ],
    )


def _few_rows(folder: Path) -> Path:
    path = folder / "eval.jsonl"
    row = {"prompt": "turn the kitchen light on", "completion": '{"room": "kitchen", "light": "on"}'}
    path.write_text(f"{json.dumps(row)}\n" * EVAL_ROWS, encoding="utf-8")
    return path


def _training_step(_: str, folder: Path) -> float:
    from edgetune.run_dir import RunDir
    from edgetune.train.loop import train

    result = train(_recipe(f"data.eval={_few_rows(folder)}"), RunDir(folder / "run").create())
    return result.train_s / result.steps


def _trainer_step(_: str, folder: Path) -> float:
    from benchmarks.train_throughput_child import _trainer
    from edgetune.model.device import device, has_bfloat16

    result = _trainer(_recipe("data.max_train_rows=192"), folder, bf16=has_bfloat16(device()))
    return float(result["train_s"] / result["steps"])


def _repair_step(_: str, folder: Path) -> float:
    from edgetune.data.prepare import prepare
    from edgetune.model.base import load_tokenizer, resolve_base
    from edgetune.quantize.matrices import round_all
    from edgetune.quantize.precisions import grid_of
    from edgetune.quantize.repair import repair

    recipe = _recipe(f"export.repair_steps={REPAIR_STEPS}", f"data.eval={_few_rows(folder)}")
    merged = resolve_base(recipe.model.base)
    tokenizer = load_tokenizer(merged)
    rows, grid = prepare(recipe, tokenizer, cache=folder / "cache"), grid_of(recipe.export)
    assert grid is not None
    marks: list[float] = []
    repair(
        merged,
        round_all(merged, grid),
        rows,
        recipe,
        pad_id=tokenizer.pad_token_id or 0,
        progress=lambda _: marks.append(time.perf_counter()),
    )
    # The median: after every fourth step the eval loss is taken.
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def _torch_answers(_: str, folder: Path) -> float:
    from edgetune.evaluate.evaluate import Target
    from edgetune.evaluate.texts import prepare_eval_set
    from edgetune.evaluate.torch_model import load
    from edgetune.model.base import resolve_base
    from edgetune.recipe import ModelTable

    recipe = _recipe("evaluate.max_rows=12", "evaluate.max_new_tokens=16")
    base = resolve_base(recipe.model.base)
    table = ModelTable(base=str(base))
    rows = prepare_eval_set(recipe, Target("base", "base", base, table), folder)
    model = load({"kind": "merged", "path": str(base), "model": dataclasses.asdict(table)})
    model.generate(rows.rows[:2], limits=rows.limits)
    start = time.perf_counter()
    model.generate(rows.rows, limits=rows.limits)
    return time.perf_counter() - start


def _edgetune_token(path: str, _: Path) -> float:
    from benchmarks.decode_child import _edgetune

    return 1 / float(_edgetune(path, list(range(10, 10 + PROMPT_TOKENS)), NEW_TOKENS)["decode_tokens_per_s"])


def _llama_token(path: str, _: Path) -> float:
    from benchmarks.decode_child import _llama_cpp

    return 1 / float(_llama_cpp(path, list(range(10, 10 + PROMPT_TOKENS)), NEW_TOKENS)["decode_tokens_per_s"])


WORKS = {
    "training step": _training_step,
    "trainer step": _trainer_step,
    "repair step": _repair_step,
    "torch answers": _torch_answers,
    "edgetune token": _edgetune_token,
    "llama.cpp token": _llama_token,
}


if __name__ == "__main__":
    main()
