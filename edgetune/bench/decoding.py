"""Decoders, timed: prompts, and the tokens that follow them. Runs in the target's own process."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetune.bench import engine as engines
from edgetune.bench.energy import find_counter
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident
from edgetune.progress import Progress

NEW_TOKENS_OF_MEMORY = 8
"""Tokens that are made at the end of a context whose memory is measured."""


def measure_speed(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Load (the libraries are there already); then the first token after prompts of several lengths, and decoding, each
    after a warm-up.

    Gives seconds: load_s; first_s {prompt tokens: one a pass}; token_s, one list a pass. Prompts that do not fit the
    context are left out.
    """
    load = engines.loader(request)
    start_s = time.perf_counter()
    engine = load(request)
    load_s = time.perf_counter() - start_s
    passes, fits = request["passes"], engine.context_length - 1
    first_s = {}
    for length in (length for length in request["prompts"] if length <= fits):
        ids = random_ids(engine, length)
        engine.token_seconds(ids, new_tokens=1)
        first_s[str(length)] = [engine.token_seconds(ids, new_tokens=1)[0] for _ in range(passes)]
        progress({})
    prompt, new = decode_lengths(engine.context_length, request["decode"])
    ids = random_ids(engine, prompt)
    engine.token_seconds(ids, new_tokens=min(new, 8))
    counter = find_counter(engine.device)
    before = counter.read() if counter else ()
    token_s = [engine.token_seconds(ids, new_tokens=new)[1:] for _ in range(passes)]
    spent_j = counter.since(before) if counter else None
    weights = engine.weights()
    return {
        "device": engine.device,
        "context_length": engine.context_length,
        "load_s": load_s,
        "first_s": first_s,
        "token_s": token_s,
        "decode_prompt": prompt,
        "energy_j": None if spent_j is None else spent_j / (passes * new),
        "energy_source": counter.source if counter else None,
        "weights": dataclasses.asdict(weights) if isinstance(weights, engines.Weights) else weights,
        "prefill_flops": None
        if not isinstance(weights, engines.Weights)
        else {length: weights.prefill_flops(int(length)) for length in first_s},
        "torch_loaded": "torch" in sys.modules,
    }


def measure_memory(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Peak resident memory of this process with a context filled to the brim, NEW_TOKENS_OF_MEMORY of it made.

    cold: from the start of the process, loading included. warm: of the same pass a second time; absent where the system
    cannot start measuring anew.
    """
    engine, context = engines.loader(request)(request), request["context"]
    if context > engine.context_length:
        return {"context_length": engine.context_length, "cold": None, "warm": None, "device_bytes": None}
    new = min(NEW_TOKENS_OF_MEMORY, context // 2)
    ids = random_ids(engine, context - new)
    engine.token_seconds(ids, new_tokens=new)
    cold, warm = peak_resident_bytes(), None
    if request["is_warm_too"] and reset_peak_resident():
        progress({})
        engine.token_seconds(ids, new_tokens=new)
        warm = peak_resident_bytes()
    torch = sys.modules.get("torch")
    device = torch.cuda.max_memory_allocated() if torch is not None and engine.device == "cuda" else None
    return {"context_length": engine.context_length, "cold": cold, "warm": warm, "device_bytes": device}


def random_ids(engine: engines.Engine, length: int) -> list[int]:
    """Seeded ids from all of the vocabulary: speed does not depend on which, and text would be of some tokenizer."""
    return np.random.default_rng(0).integers(0, engine.vocabulary, size=length).tolist()


def decode_lengths(context: int, wanted: Mapping[str, int]) -> tuple[int, int]:
    """(prompt, new tokens): as wanted, or less where the context is short; at least two new ones."""
    new = max(2, min(wanted["new"], context // 2))
    return max(1, min(wanted["prompt"], context - new)), new
