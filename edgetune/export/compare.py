"""How far the logits of a bundle are from those of a torch model, token by token."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgetune.export.decoder import GRAPH
from edgetune.runtime.bundle import GENAI_CONFIG, Bundle
from edgetune.runtime.logits import Logits

BATCH_LOGITS = 1 << 22
"""Logits compared at a time: 16 MiB in float32, a few copies of which are alive."""
BATCH_TOKENS = 1 << 11
"""Tokens at a time, for the memory of the layers."""
ALL_LOGITS = 1 << 29
"""Logits compared in all: with a vocabulary of 128,256 some 4,000 tokens, with a small one every token."""


@dataclass(frozen=True)
class Deviation:
    """Two models on the same tokens."""

    relative: float
    """Largest difference of a logit, in standard deviations of the reference's logits."""
    kl: float
    """Mean Kullback-Leibler divergence of the next-token distributions, nats; the reference is the truth."""
    agreement: float
    """Share of tokens after which both find the same next token likeliest."""
    tokens: int


def deviation(reference: Any, bundle: Bundle, sequences: Sequence[Sequence[int]]) -> Deviation:
    """The bundle's logits against the torch model's, over all tokens of the sequences that fit ALL_LOGITS."""
    device = Logits(bundle)
    largest = divergence = agreed = 0.0
    tokens, total, squares = 0, 0.0, 0.0
    vocabulary = int(reference.config.vocab_size)
    for batch in _batches(sequences, vocabulary):
        found = device.batch_logits(batch)
        for ours, theirs in zip(found, _torch_logits(reference, batch), strict=True):
            largest = max(largest, float(np.abs(ours - theirs).max()))
            agreed += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
            truth, guess = _log_softmax(theirs), _log_softmax(ours)
            divergence += float((np.exp(truth) * (truth - guess)).sum())
            total, squares = total + float(theirs.sum(dtype=np.float64)), squares + float(np.square(theirs).sum())
            tokens += len(ours)
    if not np.isfinite(largest):
        return Deviation(relative=float("inf"), kl=float("inf"), agreement=0.0, tokens=tokens)
    count = max(1, tokens * vocabulary)
    spread = float(np.sqrt(max(squares / count - (total / count) ** 2, 1e-12)))
    return Deviation(largest / spread, divergence / max(1, tokens), agreed / max(1, tokens), tokens)


@contextmanager
def at_level_0(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with activations multiplied as they are (accuracy_level 0), in a folder beside it that vanishes."""
    with tempfile.TemporaryDirectory(prefix=f".{bundle.path.name}.", dir=bundle.path.parent) as folder:
        model = onnx.load(str(bundle.path / GRAPH), load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 0
        onnx.save(model, str(Path(folder) / GRAPH))
        shutil.copy(bundle.path / GENAI_CONFIG, folder)
        _link(bundle.path / f"{GRAPH}.data", Path(folder) / f"{GRAPH}.data")
        yield dataclasses.replace(bundle, path=Path(folder))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _batches(sequences: Sequence[Sequence[int]], vocabulary: int) -> Iterator[list[Sequence[int]]]:
    """Sequences of like length together, as many as the bounds allow when padded, at least one."""
    most_tokens = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)
    left = max(1, ALL_LOGITS // vocabulary)
    chosen = []
    for sequence in sequences:
        if len(sequence) <= left:
            chosen.append(sequence)
            left -= len(sequence)
    batch: list[Sequence[int]] = []
    for sequence in sorted(chosen, key=len):
        if batch and (len(batch) + 1) * len(sequence) > most_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


@torch.no_grad()
def _torch_logits(model: Any, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """B sequences -> B arrays (T_b, V) float32. Padding stands at the end, where a causal model does not look."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    logits = model(input_ids=ids, use_cache=False).logits.float().numpy()
    return [logits[row, : len(sequence)] for row, sequence in enumerate(batch)]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
