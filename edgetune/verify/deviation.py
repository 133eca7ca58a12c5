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
import onnx_ir as ir
import torch

from edgetune.runtime.batches import by_length, padded
from edgetune.runtime.bundle import GRAPH, MANIFEST, Bundle
from edgetune.runtime.logits import Logits
from edgetune.runtime.probabilities import log_softmax

BATCH_LOGITS = 1 << 22
"""Logits compared at a time: 16 MiB in float32, a few copies of which are alive."""
BATCH_TOKENS = 1 << 11
"""Tokens at a time, for the memory of the layers."""
MOST_TOKENS, LEAST_TOKENS = 1 << 13, 1 << 9
ALL_PRODUCTS = 1 << 37
"""Weights times tokens: some 1,200 tokens of 110 million weights. A minute on two cores is proof enough."""
ALL_LOGITS = 1 << 28
"""Logits compared in all: with a vocabulary of 128,256 some 2,000 tokens."""


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


def deviations(reference: Any, bundles: Sequence[Bundle], sequences: Sequence[Sequence[int]]) -> list[Deviation]:
    """Each bundle's logits against the torch model's, over as many tokens as the model's size allows."""
    devices = [Logits(bundle) for bundle in bundles]
    sums = [_Sums() for _ in bundles]
    vocabulary = int(reference.config.vocab_size)
    weights = sum(parameter.numel() for parameter in reference.parameters())
    affordable = min(MOST_TOKENS, ALL_LOGITS // vocabulary, max(LEAST_TOKENS, ALL_PRODUCTS // weights))
    for batch in _batches(sequences, vocabulary, affordable):
        wanted = _torch_logits(reference, batch)
        for device, running in zip(devices, sums, strict=True):
            for found, truth in zip(device.batch_logits(batch), wanted, strict=True):
                running.add(found, truth)
    return [running.deviation() for running in sums]


@torch.no_grad()
def tail_deviation(reference: Any, bundle: Bundle, ids: Sequence[int], *, tail: int) -> Deviation:
    """A bundle's logits against the torch model's after the last `tail` tokens of one text."""
    device = Logits(bundle).logits(ids)[-tail:]
    truth = reference(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=tail).logits[0].float().numpy()
    running = _Sums()
    running.add(device, truth)
    return running.deviation()


@torch.no_grad()
def last_logits(reference: Any, ids: Sequence[int]) -> np.ndarray:
    """The torch model's logits (V,) float32 after a text."""
    found = reference(input_ids=torch.tensor([list(ids)]), use_cache=False, logits_to_keep=1).logits[0, -1]
    return np.asarray(found.float().numpy())


class _Sums:
    """What a Deviation is made of, token by token."""

    def __init__(self) -> None:
        self.largest = self.divergence = self.agreed = self.total = self.squares = 0.0
        self.tokens = self.count = 0

    def add(self, found: np.ndarray, truth: np.ndarray) -> None:
        """Two arrays (T, V) float32 for the same tokens."""
        self.largest = max(self.largest, float(np.nan_to_num(np.abs(found - truth), nan=np.inf).max()))
        self.agreed += float((found.argmax(-1) == truth.argmax(-1)).sum())
        log_truth, log_found = log_softmax(truth), log_softmax(found)
        self.divergence += float((np.exp(log_truth) * (log_truth - log_found)).sum())
        self.total += float(truth.sum(dtype=np.float64))
        self.squares += float(np.square(truth).sum(dtype=np.float64))
        self.tokens += len(truth)
        self.count += truth.size

    def deviation(self) -> Deviation:
        """The whole of it; a model that answers NaN is infinitely far off."""
        tokens, count = max(1, self.tokens), max(1, self.count)
        spread = float(np.sqrt(max(self.squares / count - (self.total / count) ** 2, 1e-12)))
        divergence = self.divergence / tokens if np.isfinite(self.divergence) else float("inf")
        return Deviation(self.largest / spread, divergence, self.agreed / tokens, self.tokens)


@contextmanager
def at_level_0(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with activations multiplied as they are (accuracy_level 0), in a folder beside it that vanishes."""
    with tempfile.TemporaryDirectory(prefix=f".{bundle.path.name}.", dir=bundle.path.parent) as folder:
        model = ir.load(bundle.path / GRAPH)
        for node in model.graph:
            if "accuracy_level" in node.attributes:
                node.attributes.add(ir.AttrInt64("accuracy_level", 0))
        ir.save(model, Path(folder) / GRAPH)
        for file in bundle.path.iterdir():
            if file.is_file() and file.name not in (GRAPH, MANIFEST):
                _link(file, Path(folder) / file.name)
        yield dataclasses.replace(bundle, path=Path(folder))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _batches(sequences: Sequence[Sequence[int]], vocabulary: int, affordable: int) -> Iterator[list[Sequence[int]]]:
    """Sequences of like length together, as many as the bounds allow when padded, at least one."""
    most_tokens = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)
    chosen: list[Sequence[int]] = []
    for sequence in sequences:
        if not chosen or sum(map(len, chosen)) + len(sequence) <= affordable:
            chosen.append(sequence)
    for places in by_length(map(len, chosen), most_tokens=most_tokens):
        yield [chosen[place] for place in places]


@torch.no_grad()
def _torch_logits(model: Any, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """B sequences -> B arrays (T_b, V) float32. Padding stands at the end, where a causal model does not look."""
    ids = torch.from_numpy(padded(batch)[0])
    logits = model(input_ids=ids, use_cache=False).logits.float().numpy()
    return [logits[row, : len(sequence)] for row, sequence in enumerate(batch)]
