"""One training of benchmarks.classify_throughput in a process of its own: prints one JSON line."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.classify_throughput import COMPUTE_DTYPE, RECIPE
from benchmarks.measure import timed_training
from edgetune.data.prepare import Prepared, prepare
from edgetune.evaluate.label_rows import make_label_set, targets_of
from edgetune.evaluate.torch_labeller import load
from edgetune.model.base import load_tokenizer, resolve_base
from edgetune.model.classifier import imprint
from edgetune.model.memory import peak_memory_bytes
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir
from edgetune.train import classification
from edgetune.train.loop import train

PEER_LEARNING_RATE = 2e-3
"""Twice EdgeTune's for this encoder: the Trainer's head starts from nothing."""
BATCH_ROWS = 256
"""Rows that are scored at once."""


def main() -> None:
    """Arguments: contestant, folder with train.csv and eval.csv, epochs, base, seed."""
    name, data, epochs, base, seed = sys.argv[1:]
    recipe = load_recipe(
        RECIPE,
        [
            f"model.base={base}",
            f"model.compute_dtype={COMPUTE_DTYPE}",
            f"data.train={data}",
            f"train.epochs={epochs}",
            f"train.seed={seed}",
            "train.eval_steps=1000000",
            "train.checkpoint_steps=1000000",
        ],
    )
    with tempfile.TemporaryDirectory() as work:
        result = _edgetune(recipe, Path(work)) if name == "edgetune" else _trainer(recipe, name, Path(work))
    print(json.dumps(result))


def _edgetune(recipe: Recipe, work: Path) -> dict[str, Any]:
    run_dir = RunDir(work / "run").create()
    imprinted_s = _time_imprint()
    result = train(recipe, run_dir)
    train_s = result.train_s + sum(imprinted_s)
    labels = json.loads((run_dir.adapter / "classifier.json").read_text("utf-8"))["labels"]
    label_set = make_label_set(recipe, labels)
    held_out = label_set.calibration
    target = load({"kind": "tuned", "model": dataclasses.asdict(recipe.model), "path": str(run_dir.adapter)})
    answers = target.logits([row.text for row in held_out]).argmax(1)
    return {
        "rows_per_s": result.trained_tokens / train_s,
        "peak_bytes": result.peak_bytes,
        "accuracy": float((answers == targets_of(held_out, label_set)).mean()),
        "steps": result.steps,
        "train_s": train_s,
        "imprint_s": sum(imprinted_s),
        "rows": result.trained_tokens,
        "eval_rows": len(held_out),
    }


def _time_imprint() -> list[float]:
    """A list that will hold the seconds of EdgeTune's pass before the first step: its clock starts after that."""
    seconds: list[float] = []

    def imprint_timed(*arguments: Any) -> None:
        started = time.perf_counter()
        imprint(*arguments)
        seconds.append(time.perf_counter() - started)

    classification.imprint = imprint_timed
    return seconds


def _trainer(recipe: Recipe, name: str, work: Path) -> dict[str, Any]:
    """The baseline as its users write it."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(recipe.train.seed)
    base = resolve_base(recipe.model.base)
    tokenizer = load_tokenizer(base)
    prepared = prepare(recipe, tokenizer, max_length=recipe.data.max_seq_len, cache=work / "cache")
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(prepared.labels),
        dtype=getattr(torch, COMPUTE_DTYPE),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, COMPUTE_DTYPE),
            llm_int8_skip_modules=["classifier"],  # transformers 5.24 puts a new head in 4 bits, which then fails
        ),
    )
    table = recipe.lora
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="SEQ_CLS",
            r=table.r,
            lora_alpha=table.alpha,
            lora_dropout=table.dropout,
            target_modules="all-linear",
        ),
    )
    rows = _rows(prepared, "train")
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=recipe.train.batch_size,
        num_train_epochs=recipe.train.epochs,
        learning_rate=PEER_LEARNING_RATE,
        lr_scheduler_type=recipe.train.schedule,
        warmup_steps=recipe.train.warmup_ratio,
        label_smoothing_factor=recipe.classify.label_smoothing,
        train_sampling_strategy="group_by_length" if name.endswith("grouped") else "random",
        seed=recipe.train.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))
    train_s = timed_training(trainer)
    peak_bytes = peak_memory_bytes()
    held_out = _rows(prepared, "eval")
    model.eval()
    right = 0
    for start in range(0, len(held_out), BATCH_ROWS):
        batch = held_out[start : start + BATCH_ROWS]
        inputs = tokenizer.pad(
            [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in batch],
            return_tensors="pt",
        ).to(model.device)
        with torch.no_grad():
            answers = model(**inputs).logits.argmax(1).cpu().numpy()
        right += int((answers == np.array([row["labels"] for row in batch])).sum())
    return {
        "rows_per_s": len(rows) * recipe.train.epochs / train_s,
        "peak_bytes": peak_bytes,
        "accuracy": right / len(held_out),
        "steps": trainer.state.global_step,
        "train_s": train_s,
        "rows": int(len(rows) * recipe.train.epochs),
        "eval_rows": len(held_out),
    }


def _rows(prepared: Prepared[Any], which: str) -> list[dict[str, Any]]:
    part = getattr(prepared, which)
    ids = [list(map(int, part.tokens[number].input_ids)) for number in range(len(part))]
    targets = part.target(range(len(part))).tolist()
    return [
        {"input_ids": text, "attention_mask": [1] * len(text), "labels": target}
        for text, target in zip(ids, targets, strict=True)
    ]


if __name__ == "__main__":
    main()
