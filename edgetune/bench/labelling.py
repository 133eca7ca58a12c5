"""Encoders: what one round asks of a target's processes, and the columns that rounds become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgetune.bench.noise import Value, absent, peaks, summarise

LENGTHS = (16, 64, 128)
"""Tokens of a text."""
BATCHES = (1, 8, 32)
"""Texts labelled at once."""
MEMORY_LENGTH = 128
WRITES_NO_TEXT = absent("labels texts, writes none")
LABELS_NOTHING = absent("writes text, labels none")
Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


def measure_round(ask: Ask, *, passes: int) -> dict[str, Any]:
    """Speed by batch and length, and the peak of memory by batch, each from a process of its own."""
    speed = ask({"measure": "labelling", "passes": passes, "lengths": LENGTHS, "batches": BATCHES})
    memory = {
        size: ask({"measure": "labelling_memory", "length": MEMORY_LENGTH, "batch": size, "is_warm_too": True})
        for size in (BATCHES[0], BATCHES[-1])
    }
    return {**speed, "memory": memory}


def columns(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Load time, and under "labelling" latency and throughput by length and batch, and peaks by batch."""
    first = rounds[0]
    return {
        "device": first["device"],
        "context_length": first["context_length"],
        "load_s": summarise([[item["load_s"]] for item in rounds]),
        "labelling": {
            "batch": {
                str(length): {str(size): _batch(rounds, length, size) for size in BATCHES}
                if str(length) in first["batch_s"]
                else absent(f"its texts hold {first['context_length']:,} tokens")
                for length in LENGTHS
            },
            "peak_bytes": {
                str(size): {
                    **peaks([item["memory"][size] for item in rounds]),
                    "tokens": min(MEMORY_LENGTH, first["context_length"]),
                }
                for size in first["memory"]
            },
        },
    }


def _batch(rounds: Sequence[Mapping[str, Any]], length: int, size: int) -> Value:
    """Seconds of one batch, and texts a second in batches of that size."""
    seconds = [item["batch_s"][str(length)][str(size)] for item in rounds]
    rates = [[size / one for one in process] for process in seconds]
    return {"latency_s": summarise(seconds), "texts_per_s": summarise(rates, is_rate=True)}
