"""One measurement of benchmarks.encoder_speed in a process of its own: prints one JSON line."""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import data_folder
from edgetune.process_memory import peak_resident_bytes
from edgetune.runtime.session import usable_cores

SINGLES = 200
BATCHED = 1024
BATCH = 32
MOST_TOKENS = 64
Label = Callable[[Sequence[str]], Any]


def main() -> None:
    """Arguments: kind, path."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    with (data_folder() / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    texts = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))]
    label = {"bundle": _bundle, "onnx": _onnx, "eager": _eager, "compile": _compile}[kind](path)
    singles, many = texts[:SINGLES], sorted(texts[SINGLES : SINGLES + BATCHED], key=len)
    for text in singles[:: SINGLES // 10]:
        label([text])
    times = [_seconds(label, [text]) for text in singles]
    peak_bytes = peak_resident_bytes()
    batches = [many[start : start + BATCH] for start in range(0, len(many), BATCH)]
    for batch in batches[:: len(batches) // 4]:
        label(batch)
    spent = sum(_seconds(label, batch) for batch in batches)
    print(
        json.dumps(
            {
                "median_s": statistics.median(times),
                "p95_s": float(np.quantile(times, 0.95)),
                "texts_per_s": len(many) / spent,
                "peak_bytes": peak_bytes,
            }
        )
    )


def _seconds(label: Label, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    label(texts)
    return time.perf_counter() - started


def _bundle(path: Path) -> Label:
    """Through the runtime, with nothing but its own settings."""
    from edgetune.runtime.classifier import Classifier

    return Classifier(path).logits


def _onnx(path: Path) -> Label:
    """Through onnxruntime, with as many threads as the runtime takes."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores() or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding()

    def label(texts: Sequence[str]) -> Any:
        found = tokenizer.encode_batch(list(texts))
        ids = np.array([item.ids for item in found], np.int64)
        mask = np.array([item.attention_mask for item in found], np.int64)
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    return label


def load_torch(path: Path) -> tuple[Any, Any]:
    """The merged classifier in float32 and its tokenizer."""
    from edgetune.model.base import load_merged, load_tokenizer
    from edgetune.model.classifier import Classifier, drop_unused_pooler, load_head, read_spec

    spec, encoder = read_spec(path), load_merged(path)
    drop_unused_pooler(encoder, spec.pooling)
    classifier = Classifier(encoder, spec).eval()
    load_head(classifier, path)
    return classifier, load_tokenizer(path)


def _eager(path: Path) -> Label:
    return _torch(*load_torch(path))


def _compile(path: Path) -> Label:
    """torch.compile with sizes that vary."""
    import torch

    classifier, tokenizer = load_torch(path)
    return _torch(torch.compile(classifier, dynamic=True), tokenizer)


def _torch(classifier: Any, tokenizer: Any) -> Label:
    import torch

    def label(texts: Sequence[str]) -> Any:
        found = tokenizer(list(texts), truncation=True, max_length=MOST_TOKENS, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return classifier(found["input_ids"], found["attention_mask"])

    return label


if __name__ == "__main__":
    main()
