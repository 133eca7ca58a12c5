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
"""As in the recipe, which bundles keep to."""
Logits = Callable[[Sequence[str]], Any]
"""Texts -> (texts, labels), as the contestant makes them."""


def main() -> None:
    """Arguments: kind, path."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    with (data_folder() / "banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    texts = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))]
    logits = {"bundle": _bundle, "onnx": _onnx, "eager": _eager, "compile": _compile}[kind](path)
    singles, many = texts[:SINGLES], sorted(texts[SINGLES : SINGLES + BATCHED], key=len)
    for text in singles[:: SINGLES // 10]:
        logits([text])
    times = [_timed(logits, [text])[0] for text in singles]
    peak_bytes = peak_resident_bytes()
    batches = [many[start : start + BATCH] for start in range(0, len(many), BATCH)]
    for batch in batches[:: len(batches) // 4]:
        logits(batch)
    spent, found = zip(*(_timed(logits, batch) for batch in batches), strict=True)
    print(
        json.dumps(
            {
                "median_s": statistics.median(times),
                "p95_s": float(np.quantile(times, 0.95)),
                "texts_per_s": len(many) / sum(spent),
                "peak_bytes": peak_bytes,
                "labels": np.concatenate(found).argmax(1).tolist(),
            }
        )
    )


def _timed(logits: Logits, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Seconds, and the logits."""
    started = time.perf_counter()
    found = logits(texts)
    return time.perf_counter() - started, np.asarray(found)


def _bundle(path: Path) -> Logits:
    """Through the runtime, with nothing but its own settings."""
    from edgetune.runtime.classifier import Classifier

    return Classifier(path).logits


def _encoder(path: Path) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Texts -> padded ids and mask, int64 (B, T), by the library that the runtime uses; transformers' adds to it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding()

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = tokenizer.encode_batch(list(texts))
        ids = np.array([item.ids for item in found], np.int64)
        return ids, np.array([item.attention_mask for item in found], np.int64)

    return encode


def _onnx(path: Path) -> Logits:
    """Through onnxruntime, with as many threads as the runtime takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores() or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
    encode = _encoder(path)

    def logits(texts: Sequence[str]) -> Any:
        ids, mask = encode(texts)
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    return logits


def load_torch(path: Path) -> Any:
    """The merged classifier in float32."""
    from edgetune.model.base import load_merged
    from edgetune.model.classifier import load_classifier

    return load_classifier(load_merged(path), path)


def _eager(path: Path) -> Logits:
    return _torch(load_torch(path), path)


def _compile(path: Path) -> Logits:
    """torch.compile with sizes that vary."""
    import torch

    return _torch(torch.compile(load_torch(path), dynamic=True), path)


def _torch(classifier: Any, path: Path) -> Logits:
    import torch

    torch.set_num_threads(usable_cores() or 1)
    encode = _encoder(path)

    def logits(texts: Sequence[str]) -> Any:
        ids, mask = encode(texts)
        with torch.inference_mode():
            return classifier(torch.from_numpy(ids), torch.from_numpy(mask))

    return logits


if __name__ == "__main__":
    main()
