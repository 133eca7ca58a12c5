"""Encoders, timed: labelling batches of texts of a length, the tokenizer included. Runs in the target's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgetune.process_memory import peak_resident_bytes, reset_peak_resident
from edgetune.progress import Progress

WORDS = 64
"""Different words that texts are made of."""


class Labeller(Protocol):
    """What is timed."""

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels)."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special ones included, before it is cut."""
        ...


Load = Callable[[Mapping[str, Any]], tuple[Labeller, int, str]]
"""Loads the target of a request: the labeller, its longest text in tokens and its device."""
Loader = Callable[[Mapping[str, Any]], Load]
"""What loads a request's target, the libraries imported."""


def measure_labelling(request: Mapping[str, Any], progress: Progress, *, loader: Loader) -> dict[str, Any]:
    """Load, then after a warm-up of each the seconds of one batch: batch_s {tokens: {texts: one a pass}}.

    Lengths beyond the model's are left out.
    """
    load = loader(request)
    start_s = time.perf_counter()
    labeller, longest, device = load(request)
    load_s = time.perf_counter() - start_s
    batch_s: dict[str, dict[str, list[float]]] = {}
    for length in (length for length in request["lengths"] if length <= longest):
        for size in request["batches"]:
            texts = make_texts(labeller, length, size)
            labeller.logits(texts)
            found = [_timed(labeller, texts) for _ in range(request["passes"])]
            batch_s.setdefault(str(length), {})[str(size)] = found
        progress({})
    return {"device": device, "context_length": longest, "load_s": load_s, "batch_s": batch_s}


def measure_labelling_memory(request: Mapping[str, Any], progress: Progress, *, loader: Loader) -> dict[str, Any]:
    """Peak resident memory, cold and warm, of labelling one batch of so many texts of so many tokens."""
    labeller, longest, _ = loader(request)(request)
    texts = make_texts(labeller, min(request["length"], longest), request["batch"])
    labeller.logits(texts)
    cold, warm = peak_resident_bytes(), None
    if request["is_warm_too"] and reset_peak_resident():
        progress({})
        labeller.logits(texts)
        warm = peak_resident_bytes()
    return {"context_length": longest, "cold": cold, "warm": warm, "device_bytes": None}


def make_texts(labeller: Labeller, length: int, count: int) -> list[str]:
    """`count` texts of `length` tokens, as near as words allow, from words that are one token each; seeded."""
    special = labeller.count_tokens("")
    words = [word for word in _candidates() if labeller.count_tokens(f"{word} {word}") == special + 2][:WORDS]
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(words or ["a"], size=max(1, length - special)).tolist()) for _ in range(count)]


def _candidates() -> list[str]:
    """Short English words, then letters, one of which any tokenizer has."""
    common = "the and to of in is it you that he was for on are with as his they at be this from have or by one had not"
    rest = "but what all were when we there can an your which their if do will how about out many then them these so"
    return [*common.split(), *rest.split(), *"abcdefghijklmnopqrstuvwxyz"]


def _timed(labeller: Labeller, texts: Sequence[str]) -> float:
    start_s = time.perf_counter()
    labeller.logits(texts)
    return time.perf_counter() - start_s
