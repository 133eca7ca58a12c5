"""One training of benchmarks.train_throughput in a process of its own: prints one JSON line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from benchmarks.measure import timed_training
from benchmarks.train_throughput import RECIPE
from edgetune.data.prepare import prepare
from edgetune.lora.adapter import attach
from edgetune.model.base import load_base, load_tokenizer, resolve_base
from edgetune.model.memory import peak_memory_bytes
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.train.loss import evaluate_loss

ROWS_A_STEP = 16
"""Rows in one optimizer step of the Trainer; EdgeTune packs about as many into one of its own."""


def main() -> None:
    """Arguments: contestant, rows, base, seed, work folder."""
    name, rows, base, seed, work = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    recipe = load_recipe(
        RECIPE,
        [
            f"model.base={base}",
            f"data.max_train_rows={rows}",
            "train.epochs=1",
            f"train.seed={seed}",
            "lora.dropout=0.0",
            "train.eval_steps=1000000",
            "train.checkpoint_steps=1000000",
        ],
    )
    result = _edgetune(recipe, work) if name == "edgetune" else _trainer(recipe, work, bf16=name.endswith("bf16"))
    print(json.dumps(result))


def _edgetune(recipe: Recipe, work: Path) -> dict:
    run_dir = RunDir(work / "run").create()
    result = train(recipe, run_dir)
    assert result.eval_loss is not None
    return {
        "trained_tokens_per_s": result.trained_tokens / result.train_s,
        "peak_bytes": result.peak_bytes,
        "eval_loss": result.eval_loss,
        "steps": result.steps,
        "train_s": result.train_s,
        "trained_tokens": result.trained_tokens,
    }


def _trainer(recipe: Recipe, work: Path, *, bf16: bool) -> dict:
    """The baseline as its users write it: 4-bit base, PEFT adapter, dynamic padding, no evaluation while it trains."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.manual_seed(recipe.train.seed)
    tokenizer = load_tokenizer(resolve_base(recipe.model.base))
    prepared = prepare(recipe, tokenizer, cache=work / "cache")
    table = dataclasses.replace(recipe.model, compute_dtype="bfloat16" if bf16 else "float32")
    model = attach(load_base(table), recipe.lora)
    rows = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in prepared.train]
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=ROWS_A_STEP,
        num_train_epochs=1,
        learning_rate=float(recipe.train.learning_rate),
        lr_scheduler_type=recipe.train.schedule,
        warmup_steps=recipe.train.warmup_ratio,
        weight_decay=recipe.train.weight_decay,
        max_grad_norm=recipe.train.max_grad_norm,
        seed=recipe.train.seed,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
    )
    train_s = timed_training(trainer)
    peak = peak_memory_bytes()
    trained = sum(label != -100 for row in rows for label in row["labels"])
    pad_id = tokenizer.pad_token_id or 0
    total, count = evaluate_loss(trainer.model, prepared.eval, pad_id=pad_id, max_seq_len=recipe.data.max_seq_len)
    return {
        "trained_tokens_per_s": trained / train_s,
        "peak_bytes": peak,
        "eval_loss": total / count,
        "steps": trainer.state.global_step,
        "train_s": train_s,
        "trained_tokens": trained,
    }


if __name__ == "__main__":
    main()
